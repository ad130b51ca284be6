"""The entry point of `hpo` and of `python -m hpo`."""

import os
import signal


def main() -> None:
    """Run the command line.

    While the command line is imported, and after it has ended, Ctrl-C ends the process at once. Otherwise Python would
    print a traceback of the module that it imports.
    """
    handler = signal.getsignal(signal.SIGINT)
    outside = _leave if handler is signal.default_int_handler else handler  # the parent may have ignored the signal
    signal.signal(signal.SIGINT, outside)
    from hpo.cli.main import main as run_command_line

    try:
        signal.signal(signal.SIGINT, handler)
        run_command_line()
    except KeyboardInterrupt:  # it arrived just before the command line handles it
        _leave()
    finally:
        signal.signal(signal.SIGINT, outside)


def _leave(*_: object) -> None:
    os._exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()

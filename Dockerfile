# One image for the services launch, worker and dashboard of docker-compose.yml.
FROM python:3.13-slim

RUN useradd --create-home hpo && mkdir /runs /cache && chown hpo /runs /cache
WORKDIR /app

# The CPU build of torch is a tenth of the size. For GPUs, build with --build-arg TORCH_INDEX=https://pypi.org/simple.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" "torch>=2.10,<2.14"

COPY pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY hpo hpo
COPY model model
COPY studies studies
RUN pip install --no-cache-dir .

USER hpo
WORKDIR /
ENV HPO_CACHE=/cache
VOLUME ["/runs", "/cache"]
CMD ["hpo", "--help"]

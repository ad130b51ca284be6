"""hpo report: one page of what a study found, and the figures that the dashboard shows too."""

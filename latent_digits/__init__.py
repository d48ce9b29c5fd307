"""The course: what the notebooks teach, and nothing of how they are run."""

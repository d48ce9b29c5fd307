"""python -m study: see run.py."""

from study.run import main

main()

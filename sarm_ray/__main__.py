"""`python -m sarm_ray`: the command line where no console script is installed (a bare Ray working_dir)."""

from sarm_ray.cli import main

main()

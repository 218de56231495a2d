"""Score the specialist of a stage on the validation split; with --split test, and no -r, those of all stages.

ray job submit --runtime-env configs/runtime_env.yaml -- python jobs/evaluate.py configs/phantom.yaml -r 0
"""

from tutelage.cli import job

if __name__ == "__main__":
    job("evaluate")

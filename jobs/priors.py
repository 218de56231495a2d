"""Ask a language model what is known about the structures of a campaign.

ray job submit --runtime-env configs/runtime_env.yaml -- python jobs/priors.py configs/phantom.yaml -m MODEL
"""

from tutelage.cli import job

if __name__ == "__main__":
    job("priors")

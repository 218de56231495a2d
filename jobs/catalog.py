"""Scan the archive of a campaign.

ray job submit --runtime-env configs/runtime_env.yaml -- python jobs/catalog.py configs/phantom.yaml
"""

from tutelage.cli import job

if __name__ == "__main__":
    job("catalog")

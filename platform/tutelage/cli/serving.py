"""What `tutelage serve` does."""

import shlex

from tutelage.cli.telling import Teller
from tutelage.rounds.champion import champion
from tutelage.rounds.settings import RunSettings
from tutelage.rounds.workspace import Workspace
from tutelage.storage import Place


def serve(
    settings: RunSettings, host: str, port: int, replicas: int, max_mb: int, dry_run: bool, teller: Teller
) -> int:
    """Serve a workspace's champion until Ctrl-C or SIGTERM."""
    from tutelage.cluster import serving
    from tutelage.specialist.artifact import load

    folder = champion(Workspace(Place.of(settings.workspace)))
    serving.checkout()
    serving.check_port(host, port)
    # Ray would try a damaged specialist several times and tell its cause last.
    load(folder)
    teller.say(f"specialist {folder}")
    if dry_run:
        teller.say(f"would serve it on http://{host}:{port}; nothing was started")
        teller.result({"specialist": str(folder), "address": f"http://{host}:{port}"})
        return 0
    job = serving.ServeJob(str(folder), host, port, replicas, max_mb * 10**6, settings.archive.max_voxels)
    with serving.served(job, settings.cluster) as address:
        url = shlex.quote(f"{address}/v1/segment")
        teller.say(f"serving on {address}, Ctrl-C stops it; all addresses: {address}/docs")
        teller.say(f"curl --fail-with-body --data-binary @scan.nii.gz {url} -o mask.nii.gz")
        teller.result({"specialist": str(folder), "address": address})
        serving.wait()
        teller.say("stopping")
    return 0

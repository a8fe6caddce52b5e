"""SLURM: a job that is preempted saves, requeues itself, and ends as if nothing had happened."""

import re
import time

import toy
from cluster.conftest import ENVIRONMENT, ROOT, STEPS, recipe, wait_for_steps


def test_a_preempted_job_requeues_itself_and_ends_as_if_uninterrupted(
    slurm, tmp_path, uninterrupted
):
    run, said = tmp_path / "run", tmp_path / "said.txt"
    words = ["sbatch", "--parsable", "--ntasks=2", f"--output={said}", f"--chdir={ROOT}"]
    submitted = slurm.call(
        *words,
        str(ROOT / "launch/slurm.sbatch"),
        *recipe(tmp_path),
        "--out",
        str(run),
        **ENVIRONMENT,
    )
    assert submitted.returncode == 0, submitted.stderr
    number = submitted.stdout.strip()
    wait_for_steps(run, 12)
    assert slurm.call("scancel", "--batch", "--signal=USR1", number).returncode == 0
    job, deadline = slurm.job(number), time.monotonic() + 300
    while job["JobState"] in ("PENDING", "RUNNING", "COMPLETING") and time.monotonic() < deadline:
        time.sleep(0.5)
        job = slurm.job(number)
    text = said.read_text()
    assert (job["JobState"], job["Restarts"], job["ExitCode"]) == ("COMPLETED", "1", "0:0"), text
    stopped = re.findall(
        r"lookalike: stopped by SIG\w+ after step (\d+) of 108, saved: the same command goes on",
        text,
    )
    assert stopped
    assert set(map(int, stopped)) <= set(range(12, STEPS))
    assert toy.same(toy.tensors(run, STEPS), toy.tensors(uninterrupted, STEPS))
    assert toy.curve(run) == toy.curve(uninterrupted)

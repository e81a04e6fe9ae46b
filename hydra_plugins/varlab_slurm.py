"""``launch=slurm`` as Hydra finds launchers: in this package. What it does is in ``varlab.launch.slurm``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, run_job, setup_globals
from omegaconf import DictConfig, open_dict

try:
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher
except ImportError:  # without varlab[slurm] there is no such launcher, and asking for it says so
    pass
else:

    class VarlabSlurm(SlurmLauncher):
        """Submits as submitit's launcher does; a lost job loses no other, and requeues belong to the batch script.

        submitit_folder: of the jobs' files, with ``%j`` for the job. settings: ``conf/launch/slurm.yaml``'s.
        """

        def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
            """Submit all jobs, wait for all, and return what became of each."""
            from varlab.launch.slurm import launch

            return launch(self, job_overrides, initial_job_idx)

        def __call__(self, config: DictConfig, number: int, state: dict[type, Singleton]) -> JobReturn:  # type: ignore[override]
            """One job, on its node: with the configuration that was composed when it was submitted."""
            import submitit

            Singleton.set_state(state)
            setup_globals()
            with open_dict(config.hydra.job) as job:
                job.id, job.num = submitit.JobEnvironment().job_id, number
            return run_job(
                hydra_context=self.hydra_context,
                task_function=self.task_function,
                config=config,
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
            )

    node: dict[str, Any] = {"_target_": f"{VarlabSlurm.__module__}.VarlabSlurm"}
    ConfigStore.instance().store(group="hydra/launcher", name="varlab_slurm", node=node, provider="varlab")

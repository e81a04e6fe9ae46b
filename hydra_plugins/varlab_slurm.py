"""The Hydra plugin of ``launch=slurm``; Hydra looks for launchers in this package. The code is in ``varlab.launch.slurm``."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.config_store import ConfigStore
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, run_job, setup_globals
from omegaconf import DictConfig, open_dict

try:
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher
except ImportError:
    # Without varlab[slurm] this launcher does not exist, and launch=slurm is refused with the remedy.
    pass
else:

    class VarlabSlurm(SlurmLauncher):
        """submitit's launcher, except that a lost job does not affect the others, and the batch script requeues.

        submitit_folder: of the jobs' files, with ``%j`` for the job. settings: of ``conf/launch/slurm.yaml``.
        """

        def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
            """Submit all jobs, wait for all, and return how each ended."""
            from varlab.launch.slurm import SlurmSweep

            return SlurmSweep(self).run(job_overrides, initial_job_idx)

        def __call__(self, config: DictConfig, number: int, state: dict[type, Singleton]) -> JobReturn:  # type: ignore[override]
            """Run one job on its node, with the configuration that was composed at submission."""
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

    node = {"_target_": f"{VarlabSlurm.__module__}.VarlabSlurm"}
    ConfigStore.instance().store(group="hydra/launcher", name="varlab_slurm", node=node, provider="varlab")

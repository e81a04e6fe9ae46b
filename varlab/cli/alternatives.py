"""Keys of which one is to be given (``conf/alternatives.yaml``): one given nearer to the user replaces the others.

A configuration is composed of layers: the packaged files, the user's files, the command line. Each layer that gives one key
of a group sets the others to null.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import IConfigRepository
from hydra.core.config_search_path import ConfigSearchPath, SearchPathElement
from hydra.core.default_element import ResultDefault
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from yaml import SafeLoader, YAMLError, compose

from varlab.config import conf_dir
from varlab.errors import VarlabError
from varlab.launch.user_message import one_of
from varlab.run.config_keys import flatten

__all__ = ["LayeredLoader", "read_alternatives"]

Groups = Sequence[Sequence[str]]


def read_alternatives(file: Path, command: str) -> Groups:
    """The groups of a command; none if the file has none for it."""
    groups: Groups = OmegaConf.to_container(OmegaConf.load(file)).get(command, [])  # type: ignore[union-attr]
    return groups


class LayeredLoader(ConfigLoaderImpl):
    """Hydra's composer of configurations, with alternatives. Raises VarlabError for a layer that gives two of a group."""

    def __init__(self, search_path: ConfigSearchPath, groups: Groups):
        super().__init__(config_search_path=search_path)
        self._groups = [tuple(group) for group in groups]

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """Compose, and let the keys of the command line replace their alternatives."""
        parsed = OverridesParser.create(config_loader=self).parse_overrides(overrides)
        self._refuse_values_of_groups(config_name, parsed)
        try:
            cfg = super().load_configuration(config_name, overrides, run_mode, from_shell, validate_sweep_overrides)
        except (YAMLError, UnicodeDecodeError, RecursionError) as error:
            raise self._unreadable(error) from error
        layer = flatten({override.key_or_group: _value(override) for override in parsed})
        for group in self._groups:
            _replace(cfg, group, [key for key in group if layer.get(key) is not None], "the command line")
        return cfg

    def _refuse_values_of_groups(self, config_name: str | None, overrides: Sequence[Override]) -> None:
        """Raise VarlabError where a number, a word or null is given to a key that holds settings of its own."""
        primary = None if config_name is None else self.repository.load_config(config_name)
        for override in overrides:
            key, value = override.key_or_group, _value(override)
            if override.is_delete() or isinstance(value, dict | list) or "${" in str(value):
                continue
            if self.repository.group_exists(key):
                if not override.is_sweep_override() and not isinstance(value, str):
                    options = self.repository.get_group_options(key)
                    raise VarlabError(
                        f"{override.input_line}: {key} is chosen by name. {one_of(repr(value).lower(), options)}."
                    )
            elif primary is not None and isinstance(node := OmegaConf.select(primary.config, key), DictConfig):
                keys = ", ".join(f"{key}.{name}=…" for name in map(str, node))
                raise VarlabError(f"{override.input_line}: {key} holds settings of its own. Set one of them: {keys}")

    def _unreadable(self, error: Exception) -> VarlabError:
        """Name the file of the user that is no YAML."""
        folders = [path.removeprefix("file://") for path in map(_place, self.config_search_path.get_path())]
        broken = next((file for folder in folders for file in Path(folder).rglob("*.yaml") if not _is_yaml(file)), "")
        why = " ".join(str(error).split())
        return VarlabError(f"{broken or 'A YAML file'} cannot be read ({why:.400}): correct it, in UTF-8.")

    def _load_single_config(self, default: ResultDefault, repo: IConfigRepository) -> ConfigResult:
        """One file, in which the keys that it gives replace their alternatives of the files before."""
        result = super()._load_single_config(default, repo)
        if isinstance(result.config, DictConfig):
            for group in self._groups:
                given = [key for key in group if OmegaConf.select(result.config, key) is not None]
                _replace(result.config, group, given, f"{default.config_path}.yaml")
        return result


def _place(entry: SearchPathElement) -> str:
    return entry.path if entry.path and entry.path.startswith("file://") else str(conf_dir())


def _is_yaml(file: Path) -> bool:
    try:
        compose(file.read_text(encoding="utf-8"), Loader=SafeLoader)
    except (YAMLError, ValueError, RecursionError):
        return False
    return True


def _replace(cfg: DictConfig, group: Sequence[str], given: Sequence[str], where: str) -> None:
    """Set the others to null."""
    if len(given) > 1:
        raise VarlabError(
            f"{where} gives {' and '.join(given)}, but only one of {', '.join(group)} can be given: leave out "
            f"{' or '.join(given)}."
        )
    for key in group:
        if given and key not in given:
            OmegaConf.update(cfg, key, None, force_add=True)


def _value(override: Override) -> object:
    """What an override gives; None for nothing."""
    if override.is_delete():
        return None
    return True if override.is_sweep_override() else override.value()

"""A line's file with everything it names found and read: what `rdedge run --line FILE --dry-run` checks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from rdedge.bundle import Bundle, open_bundle
from rdedge.errors import RdedgeError, UsageError
from rdedge.inspector import Rules
from rdedge.line.checked import Problems
from rdedge.line.config import Camera, LineConfig, Sinks, read_config
from rdedge.line.masks import Mask, read_ignored
from rdedge.line.tiles import Tiling
from rdedge.signing import check_signature
from rdedge.sources import open_source

_MAX_SECRET_BYTES = 4096
_FILE_SCHEMES = ("folder:", "video:")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """``bundles`` by the name they have in the file; ``rules`` by the camera's name."""

    path: Path
    config: LineConfig
    bundles: dict[str, Bundle]
    rules: dict[str, Rules]

    def file(self, name: str) -> Path:
        """A path of the file: relative ones begin at its folder."""
        return self.path.parent / name

    def uri(self, camera: Camera) -> str:
        """The camera's address; paths of files as ``file``."""
        for scheme in _FILE_SCHEMES:
            if camera.uri.startswith(scheme):
                return f"{scheme}{self.file(camera.uri.removeprefix(scheme))}"
        return camera.uri if ":" in camera.uri else str(self.file(camera.uri))

    def secret(self, name: str | None) -> str | None:
        """What stands in a file of the plan, without the line's end. Raises UsageError."""
        return None if name is None else read_secret(self.file(name))


def make_plan(path: Path, bundle: str | None = None) -> Plan:
    """Reads the file and what it names; opens no camera and no sink. ``bundle``: in place of the line's own.

    Raises Problems with all that is wrong.
    """
    config = read_config(path)
    if bundle is not None:
        config = msgspec.structs.replace(config, bundle=bundle)
    plan = Plan(path=path, config=config, bundles={}, rules={})
    problems: list[str] = []
    for place, check in _checks(plan):
        try:
            check()
        except (RdedgeError, OSError, ValueError) as exc:  # a name with a zero byte is a ValueError
            problems.append(f"{path}: {place}: {exc}")
    if problems:
        raise Problems(list(dict.fromkeys(problems)))
    return plan


def _checks(plan: Plan) -> Iterator[tuple[str, Callable[[], object]]]:
    """Where in the file, and what to try; fills the plan."""
    config = plan.config
    for index, camera in enumerate(config.camera):
        place = f"camera[{index}]"
        if config.bundle_of(camera) not in plan.bundles:
            yield "bundle" if camera.bundle is None else f"{place}.bundle", partial(_open_bundle, plan, camera)
        yield place, partial(_set_rules, plan, camera)
        yield f"{place}.tiles", partial(_check_tiles, plan, camera)
        yield f"{place}.uri", partial(_check_uri, plan, camera)
        for key, name in _secret_files(config.sinks_of(camera)):
            where = "sinks" if camera.sinks is None else f"{place}.sinks"
            yield f"{where}.{key}", partial(read_secret, plan.file(name))
    if config.page is not None and config.page.token_file is not None:
        yield "page.token_file", partial(read_secret, plan.file(config.page.token_file))


def read_secret(path: Path) -> str:
    """A password, token or key that stands alone in a file. Raises UsageError."""
    if path.exists() and not path.is_file():  # a pipe would make us wait
        raise UsageError(f"{path}: is not a file", remedy="check the path")
    try:
        with path.open("rb") as f:
            text = f.read(_MAX_SECRET_BYTES + 1).decode().rstrip("\r\n")
    except OSError as exc:
        raise UsageError(f"{path}: cannot be read ({exc.strerror})", remedy="check path and permissions") from exc
    except UnicodeDecodeError as exc:
        raise UsageError(f"{path}: is not text", remedy="put the secret alone into the file") from exc
    if not text or len(text) > _MAX_SECRET_BYTES or "\n" in text:
        raise UsageError(f"{path}: holds no secret of one line", remedy="put the secret alone into the file")
    return text


def _open_bundle(plan: Plan, camera: Camera) -> None:
    name = plan.config.bundle_of(camera)
    path = plan.file(name)
    # A link to the newest of several bundles may change at any moment; a link to nowhere is named as it stands.
    bundle = open_bundle(path.resolve() if path.is_dir() else path)
    bundle.precision_spec(plan.config.precision)
    if plan.config.require_signature is not None:
        check_signature(bundle, plan.file(plan.config.require_signature))
    plan.bundles[name] = bundle


def _set_rules(plan: Plan, camera: Camera) -> None:
    mask = None
    if camera.roi_xywh is not None or camera.ignore or camera.ignore_image is not None:
        image = camera.ignore_image
        ignored_u8 = None if image is None else read_ignored(plan.file(image))
        mask = Mask(roi_xywh=camera.roi_xywh, ignored=camera.ignore, ignored_u8=ignored_u8)
    tiles = camera.tiles
    tiling = None if tiles is None else Tiling(tile_wh=tiles.tile_wh, overlap_px=tiles.overlap_px)
    rules = Rules(threshold=camera.threshold, min_area_px=camera.min_area_px, mask=mask, tiling=tiling)
    plan.rules[camera.name] = rules


def _check_tiles(plan: Plan, camera: Camera) -> None:
    bundle = plan.bundles.get(plan.config.bundle_of(camera))
    if camera.tiles is not None and bundle is not None and bundle.contract.input.roi_xywh is not None:
        raise UsageError(
            f"{bundle.path} has a region of interest of its own, which no tile has",
            remedy="train on pictures of tiles",
        )


def _check_uri(plan: Plan, camera: Camera) -> None:
    open_source(plan.uri(camera)).close()


def _secret_files(sinks: Sinks) -> Iterator[tuple[str, str]]:
    for kind in sinks.__struct_fields__:
        for key in ("password_file", "secret_file"):
            name = getattr(getattr(sinks, kind), key, None)
            if name is not None:
                yield f"{kind}.{key}", name

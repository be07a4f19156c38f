"""Policies: the limits that a run is held to, and where they come from."""

import difflib
import hashlib
import json
import re
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from memaudit.errors import UsageError
from memaudit.files import read_small
from memaudit.text import safe_text, shown_path

MAX_POLICY_BYTES = 1 << 18
"""A policy takes less than 1 % of it, and a pyproject.toml less than half."""

LIMITS = ("max_rate", "max_expected", "max_recited", "max_verified", "max_sensitive", "max_secrets")
"""Fields of a policy of which at least one must be set."""

_SHARES = ("min_scored_share", "min_looked_at_share", "max_out_of_range_share")
_IN_PYPROJECT = ("tool", "memaudit")
_SECTION = "gate"
_RELEASE = "release"
"""What the people who release a model say about it, for `report --annex`; no limit."""


class GatePolicy(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"
):
    """What a corpus may hold. None: not asked."""

    max_rate: float | None = None
    """Flagged examples among the scored, in [0, 1]."""

    max_expected: float | None = None
    """Examples expected to be memorized, at least 0; see `expected_bound`."""

    max_recited: int | None = None
    """Examples whose suffix the teacher recites, at least 0."""

    max_verified: int | None = None
    """Examples that a really distilled student recites, at least 0."""

    max_sensitive: int | None = None
    """Examples at risk that hold personal data or secrets, at least 0."""

    max_secrets: int | None = None
    """Examples that hold a secret at risk, at least 0."""

    expected_bound: Literal["upper", "mean"] = "upper"
    """What is held against `max_expected`: the upper end of the interval, or its mean."""

    max_bad_rows: int = 0
    """Rows that could not be used, and so were not scored, at least 0."""

    inconclusive: Literal["fail", "pass"] = "fail"
    """Whether a rule fails the gate when there is no evidence to judge it by."""

    allow_custom_classifier: bool = False
    """Whether probabilities may be those of a classifier that does not come with memaudit."""

    classifier_digest: str | None = None
    """The one classifier that is allowed."""

    baseline_digest: str | None = None
    """The one baseline that is allowed."""

    signers: tuple[str, ...] | None = None
    """Public keys, 64 hexadecimal digits each, of which one must have signed the run."""

    data: Literal["required"] | None = None
    """Whether the corpus must be at hand, to be compared with the one that was scored."""

    teacher_digest: str | tuple[str, ...] | None = None
    """The one teacher that is allowed, or several."""

    text_column: str | None = None
    """Column that must have been scored; one that was not named is called `text`."""

    layout: str | None = None
    """`--format` that the corpus must have been read with, such as `auto` or `messages`."""

    windows: Literal["first", "tile"] | None = None
    """Which windows of an example must have been scored."""

    prefix_tokens: int | None = None
    """Tokens of each window that the model must have been given."""

    suffix_tokens: int | None = None
    """Tokens of each window that must have been compared."""

    objective: str | tuple[str, ...] | None = None
    """What the student must have been taken to learn from."""

    temperature: float | tuple[float, float] | None = None
    """Of soft labels: one number, or the lowest and the highest that are allowed."""

    alpha: float | tuple[float, float] | None = None
    """Weight of cross-entropy in the loss of soft labels; likewise."""

    min_scored_share: float | None = None
    """Rows that were scored, or screened, among all rows, in [0, 1]."""

    min_looked_at_share: float | None = None
    """Rows whose trained tokens lie in a window, among the scored, in [0, 1]."""

    max_out_of_range_share: float = 0.5
    """Scored rows beyond the range of a feature in training, in [0, 1].

    Beyond this share a prediction is a guess, so predicted rules have no evidence to pass by.
    """

    settings: tuple[str, ...] | None = None
    """What else the run must have been made with, such as `split=train`; see `Judged.settings`."""

    max_age: float | None = None
    """Days since the run was made, at least 0."""

    def __post_init__(self) -> None:
        if not all(re.fullmatch("[0-9a-f]{64}", key) for key in self.signers or ()):
            raise ValueError("expected signers to be keys of 64 hexadecimal digits")
        for name in (*LIMITS, *_SHARES, "max_bad_rows", "max_age"):
            value = getattr(self, name)
            # Not isfinite: it fails where a whole number is too large to be a float.
            if value is not None and not 0 <= value <= sys.float_info.max:
                found = f"{value:g}" if isinstance(value, float) else "one out of range"
                raise ValueError(f"expected {_key(name)} to be at least 0, got {found}")
            if name in ("max_rate", *_SHARES) and value is not None and value > 1:
                raise ValueError(f"expected {_key(name)} in [0, 1], got {value:g}")

    @property
    def has_limits(self) -> bool:
        """Whether anything is asked."""
        return any(getattr(self, name) is not None for name in LIMITS)


@dataclass(frozen=True, slots=True)
class EffectivePolicy:
    """A policy as it is applied."""

    policy: GatePolicy
    source: str | None
    """The file it came from, as given; None: flags alone."""

    digest: str | None
    """Sha256 of that file."""

    is_pinned: bool = False
    """Whether that digest was asked for."""


_NO_POLICY = EffectivePolicy(GatePolicy(), None, None)


def effective_policy(
    path: Path | None,
    flags: Mapping[str, Any],
    *,
    pinned_digest: str | None = None,
    folder: Path = Path(),
) -> EffectivePolicy:
    """Return the policy of a file with the flags that are given in place of its keys.

    Where no file is named, it is `memaudit.toml`, section `gate`, or else `pyproject.toml`,
    section `tool.memaudit.gate`, of the folder.

    Args:
        path: of the file. None: looked for.
        flags: fields of `GatePolicy`; None means not given.
        pinned_digest: the file must have this sha256, and no flag may weaken what it says.
        folder: where a file is looked for.

    Raises:
        UsageError: the file cannot be read, is not the pinned one, has an unknown key or a value
            out of range; a flag would weaken a pinned policy; or no limit is set.
    """
    paths = [path] if path is not None else [folder / "memaudit.toml", folder / "pyproject.toml"]
    # Whoever adds files can add the one that comes first: only a pinned digest keeps that out.
    read = (_read_policy(each) for each in paths if each == path or each.is_file())
    found = next((each for each in read if each.digest is not None), _NO_POLICY)
    if path is not None and found.digest is None:
        raise UsageError(
            f"{shown_path(path)}: has no section [gate] or [tool.memaudit.gate]",
            hint="add it, or leave out --policy",
        )
    if pinned_digest is not None:
        _require_digest(found, pinned_digest)
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        policy = msgspec.structs.replace(found.policy, **given)
        # By hand: `replace` checks a struct only from msgspec 0.21 on, and 0.20 is allowed.
        policy.__post_init__()
    except ValueError as error:
        raise UsageError(str(error), hint="see 'memaudit gate --help'") from error
    if pinned_digest is not None:
        _require_no_weaker(found.policy, policy)
    if not policy.has_limits:
        raise UsageError(
            "no limit is set, so nothing could fail",
            hint="set one: --max-rate, --max-expected, --max-recited, --max-verified, "
            "--max-sensitive or --max-secrets, "
            "or [tool.memaudit.gate] in pyproject.toml",
        )
    return EffectivePolicy(policy, found.source, found.digest, pinned_digest is not None)


def policy_text(policy: GatePolicy) -> str:
    """Return a policy as a TOML file, without the keys that it leaves as they are."""
    unset = msgspec.to_builtins(GatePolicy())
    lines = [
        f"{key} = {json.dumps(value, ensure_ascii=False)}\n"
        for key, value in msgspec.to_builtins(policy).items()
        if value != unset[key]
    ]
    return "".join(["[gate]\n", *lines])


def _read_policy(path: Path) -> EffectivePolicy:
    """Return the policy in a file; without a digest if the file has none."""
    where = shown_path(path)
    try:
        content = read_small(path, MAX_POLICY_BYTES)
        document = tomllib.loads(content.decode())
    # Deep nesting ends the parser in a RecursionError.
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(
            f"{where}: cannot be read as a policy: {safe_text(str(reason))}",
            hint="give a TOML file with a section [gate] or [tool.memaudit.gate]",
        ) from error
    section = sections(document, where).get(_SECTION)
    if section is None:
        return _NO_POLICY
    if not isinstance(section, dict):
        raise UsageError(f"{where}: expected {_SECTION} to be a section")
    _refuse_unknown(section, GatePolicy.__struct_encode_fields__, where)
    try:
        policy = msgspec.convert(section, GatePolicy)
    except msgspec.ValidationError as error:
        raise UsageError(
            f"{where}: {safe_text(str(error)[:1].lower() + str(error)[1:])}",
            hint="see the keys and their values in the documentation of the gate",
        ) from error
    # Of the whole file, as `sha256sum` gives it, and not of the section alone.
    return EffectivePolicy(policy, where, hashlib.sha256(content).hexdigest())


def sections(document: dict[str, Any], where: str) -> Mapping[str, Any]:
    """Return the sections of memaudit in a file: all of it, or [tool.memaudit] beside other tools.

    Raises:
        UsageError: naming a section that memaudit does not have, or that stands where it must not.
    """
    is_shared = "tool" in document or "project" in document or "build-system" in document
    if is_shared:
        if _SECTION in document:  # whoever reads the file may take it for the one that counts
            raise UsageError(
                f"{where}: [{_SECTION}] stands beside sections of other tools",
                hint="call it [tool.memaudit.gate]",
            )
        for name in _IN_PYPROJECT:
            document = document.get(name, {})
            if not isinstance(document, dict):
                raise UsageError(f"{where}: expected {name} to be a section")
    _refuse_unknown(document, (_SECTION, _RELEASE), where)
    return document


def _refuse_unknown(section: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    # A limit under a misspelt key would not be asked for, and the gate would pass.
    for key in section:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
            raise UsageError(
                f"{where}: unknown key '{safe_text(key, 60)}'",
                hint=f"did you mean '{close[0]}'?" if close else f"keys: {', '.join(known)}",
            )


def _require_digest(found: EffectivePolicy, pinned: str) -> None:
    if not re.fullmatch("[0-9a-f]{64}", pinned.removeprefix("sha256:").lower()):
        raise UsageError(
            f"the policy is pinned to '{safe_text(pinned)}', expected a sha256 in hexadecimal",
            hint="'sha256sum FILE' tells it; if it comes from a variable, check that it is set",
        )
    if found.digest is None:
        raise UsageError(
            f"no policy file, expected the one with digest {safe_text(pinned[:12])}",
            hint="name it with --policy",
        )
    if found.digest != pinned.removeprefix("sha256:").lower():
        raise UsageError(
            f"{found.source}: not the pinned policy, its digest is {found.digest}",
            hint="if the change is meant, whoever pinned it has to pin the new digest",
        )


def _require_no_weaker(pinned: GatePolicy, asked: GatePolicy) -> None:
    # A flag can change a limit and not unset it, so where one is pinned there is a number to
    # compare.
    weaker = [
        name
        for name in (*LIMITS, "max_bad_rows")
        if (limit := getattr(pinned, name)) is not None and getattr(asked, name) > limit
    ]
    lenient = {"expected_bound": "mean", "inconclusive": "pass", "allow_custom_classifier": True}
    weaker += [
        name
        for name, value in lenient.items()
        if getattr(asked, name) == value != getattr(pinned, name)
    ]
    weaker += [
        name
        for name in ("classifier_digest", "baseline_digest")
        if getattr(asked, name) != getattr(pinned, name)
    ]
    if weaker:
        raise UsageError(
            f"the pinned policy would be weakened by {', '.join(map(_key, weaker))}",
            hint="leave that out, or have the policy itself changed and pinned anew",
        )


def _key(field: str) -> str:
    return field.replace("_", "-")

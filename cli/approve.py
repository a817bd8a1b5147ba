"""`fednc gates`, `fednc approve`, `fednc reject`: what waits for a person, and the person's verdict.

Prints and records through `fednc.ops.approvals`; decides nothing.
"""

from __future__ import annotations

import getpass
import json as json_format
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fednc.cli.options import Json
from fednc.cli.output import say, show_table, write_json
from fednc.common.errors import ConfigError

if TYPE_CHECKING:
    from fednc.ops.approvals.box import ApprovalBox, PendingRequest

DEFAULT_FOLDER = "approvals"
_SHORT = 16  # digits of a digest that name one

Folder = Annotated[
    str,
    typer.Option(
        "--folder",
        metavar="DIR",
        help=f"Folder of the requests. Default: FEDNC_APPROVALS, else the folder `{DEFAULT_FOLDER}`.",
    ),
]
Digest = Annotated[
    str, typer.Argument(metavar="DIGEST", help=f"The digest that you saw, or its first {_SHORT} digits or more.")
]
Subject = Annotated[
    str, typer.Option(metavar="TEXT", help="The gate, if several wait for this digest; `fednc gates` shows it.")
]
OperatorCerts = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Sign with this key: the folder that `fednc certs node ... --operator` made."
    ),
]
TrustFolder = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Check signatures against this authority and its revocations."),
]
Who = Annotated[str, typer.Option(metavar="NAME", help="Your name, without --certs. Default: your login.")]
Change = Annotated[bool, typer.Option("--change", help="Decide again what has a verdict already.")]


def gates(folder: Folder = "", trust: TrustFolder = None, json: Json = "") -> None:
    """Show what waits for a verdict, with the facts to judge it by, and the verdicts so far."""
    box = _box(folder, trust)
    waiting, given = box.pending(), box.verdicts()
    problems = box.problems(given)
    for each in waiting:
        _show(each)
    if not waiting:
        say(f"nothing waits in {box.folder}")
    if given:
        rows = [
            [v.subject, v.digest[:_SHORT], v.verdict, v.who, v.signed, v.at, v.reason, problem]
            for v, problem in zip(given, problems, strict=True)
        ]
        head = ["gate", "digest", "verdict", "who", "signed by", "at", "reason", "does not count because"]
        show_table("verdicts", head, rows)
    if json:
        pending = [{**vars(each.request), "at": each.at, "sha256": each.sha256} for each in waiting]
        told = [
            {**verdict.to_json(), "problem": problem} for verdict, problem in zip(given, problems, strict=True)
        ]
        write_json(json, {"pending": pending, "verdicts": told})


def approve(
    digest: Digest,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why, for the record.")] = "",
    folder: Folder = "",
    certs: OperatorCerts = None,
    trust: TrustFolder = None,
    who: Who = "",
    subject: Subject = "",
    change: Change = False,
    json: Json = "",
) -> None:
    """Let a gate pass: approve the digest that you saw.

    With --certs the verdict is signed with your operator's key. Without, it is recorded as unsigned.
    """
    _decide("approved", digest, reason, _box(folder, trust), certs, who, subject, change, json)


def reject(
    digest: Digest,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why, for the record.")],
    folder: Folder = "",
    certs: OperatorCerts = None,
    trust: TrustFolder = None,
    who: Who = "",
    subject: Subject = "",
    change: Change = False,
    json: Json = "",
) -> None:
    """Keep a gate shut: reject the digest that you saw, and say why."""
    _decide("rejected", digest, reason, _box(folder, trust), certs, who, subject, change, json)


def _decide(
    verdict: str,
    digest: str,
    reason: str,
    box: ApprovalBox,
    certs: Path | None,
    who: str,
    subject: str,
    change: bool,
    json: str,
) -> None:
    from fednc.common.security.signatures import Signer

    signer = Signer.from_folder(certs) if certs else None
    if signer is not None:
        holder = signer.holder
        if who and holder and who != holder.name:
            raise ConfigError(f"--who {who}: the certificate in {certs} is {holder}'s; leave --who out")
        who = holder.name if holder else who
    whole = _whole(box, digest)
    given = box.decide(whole, verdict, who or getpass.getuser(), reason, signer, subject=subject, change=change)
    say(f"{given.subject}: {given.verdict} {given.digest[:_SHORT]} by {given.who} ({given.signed})")
    if json:
        write_json(json, given.to_json())


def _whole(box: ApprovalBox, digest: str) -> str:
    """The digest that `digest` begins, among all that were ever asked about; else itself, which is then
    refused.
    """
    digest = digest.lower()
    known = {each.request.digest for each in box.pending()} | {each.digest for each in box.verdicts()}
    found = [each for each in known if len(digest) >= _SHORT and each.startswith(digest)]
    return found[0] if len(found) == 1 else digest


def _show(each: PendingRequest) -> None:
    asked = each.request
    rows = [["digest", asked.digest], ["asked at", each.at]]
    rows += [
        [key, value if isinstance(value, str) else json_format.dumps(value)] for key, value in asked.facts.items()
    ]
    if asked.signed:
        rows.append(["verdict", "must be signed: --certs"])
    show_table(asked.subject, ["", "value"], rows)
    say(f"fednc approve {asked.digest[:_SHORT]}   or   fednc reject {asked.digest[:_SHORT]} --reason TEXT")


def _box(folder: str, trust: Path | None) -> ApprovalBox:
    from fednc.common.security.signatures import Trust
    from fednc.ops.approvals.box import ApprovalBox

    place = Path(folder or os.environ.get("FEDNC_APPROVALS", "") or DEFAULT_FOLDER)
    return ApprovalBox(place, Trust.from_folder(trust) if trust else None)

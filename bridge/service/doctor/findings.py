"""What the doctor finds: facts of one line each, and problems with their remedy."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path


class Level(StrEnum):
    """How bad a finding is. Only problems make a state folder unhealthy."""

    OK = "ok"
    NOTE = "note"
    REPAIRED = "repaired"
    PROBLEM = "PROBLEM"


@dataclass(frozen=True)
class Finding:
    """One check and its outcome."""

    level: Level
    text: str


@dataclass
class Report:
    """One page. `repair`: whether the checks may mend what they find."""

    repair: bool = False
    facts: dict[str, dict[str, str]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        return all(finding.level is not Level.PROBLEM for finding in self.findings)

    def ok(self, text: str) -> None:
        self.findings.append(Finding(Level.OK, text))

    def note(self, text: str) -> None:
        self.findings.append(Finding(Level.NOTE, text))

    def problem(self, text: str, remedy: str) -> None:
        """Something that the doctor cannot mend."""
        self.findings.append(Finding(Level.PROBLEM, f"{text}: {remedy}"))

    def mendable(self, text: str) -> bool:
        """Something that it can: True if it may, and `repaired` follows."""
        if not self.repair:
            self.findings.append(Finding(Level.PROBLEM, f"{text}: run imagegen doctor --repair"))
        return self.repair

    def repaired(self, text: str) -> None:
        self.findings.append(Finding(Level.REPAIRED, text))

    def text(self) -> str:
        """The page. The user's home folder is written as ~, because the page goes into public issues."""
        lines: list[str] = []
        for title, facts in self.facts.items():
            lines.append(title)
            width = max((len(name) for name in facts), default=0)
            lines += [f"  {name:<{width}}  {value}" for name, value in facts.items()]
        lines.append("checks")
        lines += [f"  {finding.level:<8}  {finding.text}" for finding in self.findings]
        lines.append("healthy" if self.healthy else "not healthy")
        return public("\n".join(lines))

    def as_dict(self) -> dict[str, object]:
        findings = [{"level": str(finding.level), "text": public(finding.text)} for finding in self.findings]
        facts = {title: {key: public(value) for key, value in items.items()} for title, items in self.facts.items()}
        return {"healthy": self.healthy, "facts": facts, "checks": findings}


def public(text: str) -> str:
    """A text without the name of the home folder."""
    home = str(Path.home())
    return text.replace(home + "/", "~/") if len(home) > 1 else text

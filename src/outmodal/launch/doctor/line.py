"""One finding of the doctor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "failure"]


@dataclass(frozen=True)
class Line:
    """One finding; `remedy` says what to do where the status is not ok."""

    name: str
    status: Status
    found: str
    remedy: str = ""

    def shown(self) -> str:
        """The line for people."""
        remedy = f"\n{'':10}remedy: {self.remedy}" if self.remedy else ""
        return f"{self.status:<8}  {self.name}: {self.found}{remedy}"

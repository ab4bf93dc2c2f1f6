"""Licences of the data that data cards can name: known files by their sha256, everything else as the user's own."""

from __future__ import annotations

from collections.abc import Mapping

_NQ = "Natural Questions in the lost-in-the-middle layout: MIT (repository), CC BY-SA 3.0 (questions, Wikipedia)"
_MUSIQUE = "MuSiQue-Ans: CC BY 4.0"
_SUMMHAY = "Summary of a Haystack: Apache-2.0"
_TWO_WIKI = "2WikiMultihopQA: Apache-2.0"
_HOTPOT = "HotpotQA: CC BY-SA 4.0"
_PASSAGES = f"Passages of: {_NQ}; {_MUSIQUE}; {_TWO_WIKI}; {_HOTPOT}"

KNOWN: Mapping[str, str] = {
    "6a7f72b846f663a133ef952244e5a4e43f06bcf190afe34e8fbe687ce0d1653e": _NQ,
    "e1a37bbde33f27c9f198f464d87223e27f0f3649f4fbe1df6012a7face964b00": _NQ,
    "b3d0a69e12b6ee6399985847c6a3d18e75e69abf5a0fc8cec46090171b16fbdb": _NQ,
    "3807c7ec459c83ed1f5cebf3e93cc507057d067802f953bbf73831b1f8b7bb37": _MUSIQUE,
    "69fba7b744e5fa91304899a611a8793df0a175097a69449c0ee9fb82a5ae3aad": _MUSIQUE,
    "22540b115d728aa32339355ea08fd6f93d076162bdad1c66830881e3accba11a": _SUMMHAY,
    "5fabfeecbd0df728f22f4713b38f9ffa5812d710e3745b04155138357cf706c9": _SUMMHAY,
    "3f4f1c0aa888ff0add606aa05e9ac69f97a1f3c56d08c13ea1aa032c03f923e8": _SUMMHAY,
    "cc387ac62730a5f105a2b2e6588c565ac816122e070fb2be3fcfff4e1a96761b": _SUMMHAY,
    "c42b4803b0d6263cd51c883e540395e42707c7767c2bac712fb1f1160fed56f3": _TWO_WIKI,
    "8947352448859fa748fb370f2b0970d17df0c30b7fb5ea949a88016b643d0e18": _TWO_WIKI,
    "cf12cf3c909a016e3e9de11135bd6e31e9f083f0202def8d7391e68f5eebeab9": _HOTPOT,
    "715d2f33ab300715e6d896adfe83d33e72a55405f631aa6aac650a87cf2f928d": _PASSAGES,
}
UNKNOWN = "not known to rhstudy: see the file's own source"
INVENTED = "names from Faker (MIT); wordings of rhstudy (Apache-2.0)"
WRITTEN = "written by a language model; the recording's header names it"


def licence_of(sha256: str, reference: str = "") -> str:
    """The licence of a source by the sha256 of its content; `reference` is its path or hub name."""
    if "python-docs" in reference:
        return "Python documentation: Python Software Foundation License"
    return KNOWN.get(sha256, UNKNOWN)

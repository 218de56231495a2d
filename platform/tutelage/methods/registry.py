"""Which methods there are: the class of each, by the name that settings use.

A class is imported when a round trains with it, and not before: what a method needs beside
torch is its own business.
"""

from importlib import import_module

from tutelage.methods.base import MethodFactory
from tutelage.methods.needs import MethodName

METHODS: dict[MethodName, str] = {
    "supervised": "tutelage.methods.supervised:Supervised",
    "mean_teacher": "tutelage.methods.mean_teacher:MeanTeacher",
    "ua_mt": "tutelage.methods.ua_mt:UaMt",
    "cps": "tutelage.methods.cps:Cps",
    "bcp": "tutelage.methods.bcp:Bcp",
    "llm_segnet": "tutelage.methods.llm_segnet:LlmSegNet",
    "tak": "tutelage.methods.tak:Tak",
    "knowledge_mining": "tutelage.methods.knowledge_mining:KnowledgeMining",
    "semisam_plus": "tutelage.methods.semisam_plus:SemiSamPlus",
    "tutelage": "tutelage.methods.tutelage:Tutelage",
}
"""One line a method: where its class is."""


def method_class(name: MethodName) -> MethodFactory:
    """Return the class of a method."""
    module, _, cls = METHODS[name].partition(":")
    found: MethodFactory = getattr(import_module(module), cls)
    return found

"""Contracts that a plug-in's author can run: each ``check_…`` raises VarlabError with one sentence about what is broken.

They need nothing but the object, on the CPU and in seconds. ``varlab check`` calls them, and varlab's own tests do.
"""

from varlab.testing.network_contract import check_condition, check_extractor, check_metric, check_perceptual
from varlab.testing.order_contract import check_order
from varlab.testing.source_contract import check_source
from varlab.testing.task_contract import check_task
from varlab.testing.tokenizer_contract import check_quantizer, check_tokenizer

__all__ = [
    "check_condition",
    "check_extractor",
    "check_metric",
    "check_order",
    "check_perceptual",
    "check_quantizer",
    "check_source",
    "check_task",
    "check_tokenizer",
]

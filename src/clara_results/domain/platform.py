"""What a platform tells a pipeline's operator by its environment.

``INPUT_PATHS`` and ``OUTPUT_PATHS`` are the original platform's own. The four ids are this project's convention in
the same style.
"""

import re

from clara_results.errors import InvalidInput

JOB_ID = "NVIDIA_CLARA_JOBID"
PIPELINE_ID = "NVIDIA_CLARA_PIPELINEID"
PAYLOAD_ID = "NVIDIA_CLARA_PAYLOADID"
OPERATOR_NAME = "NVIDIA_CLARA_OPERATORNAME"
INPUT_PATHS = "NVIDIA_CLARA_INPUTPATHS"
"""``name:/path``, several joined by ``;``: the folders that the operator reads."""
OUTPUT_PATHS = "NVIDIA_CLARA_OUTPUTPATHS"
"""Likewise: the folders that it writes."""

PIPELINE_NAME_RULE = "1 to 255 letters, digits, '-' or '_'"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,255}", re.ASCII)


def pipeline_name(name: str) -> str:
    """Check a pipeline's, operator's, input's or output's name; they compare without regard to case.

    Raises:
        InvalidInput: The name breaks ``PIPELINE_NAME_RULE``.
    """
    if not _NAME.fullmatch(name):
        raise InvalidInput(f"that is not a name: {PIPELINE_NAME_RULE}", code="invalid-name")
    return name

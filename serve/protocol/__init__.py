"""The Open Inference Protocol V2: its messages, and tensors checked on the way in and out.

Specification: https://github.com/kserve/open-inference-protocol, and of the extensions the
documents `extension_binary_data`, `extension_classification` and `extension_parameters` of the
Triton inference server.
"""

"""Beyond this machine nobody is answered without a certificate or a token, over either protocol."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch

from fednc.common.address import Address
from fednc.common.errors import ConfigError
from fednc.common.security.authority import Authority
from fednc.ops.serving.access import door_of
from fednc.ops.serving.models import WantedModel
from fednc.ops.serving.sources import FolderSource
from fednc.protos import open_inference_pb2 as pb
from support.local_servers import Place
from support.served_models import LOCAL, SIZE, RunningServer, ask, export_model, json_request

INFER = "/v2/models/digits/infer"
BODY = json_request(torch.zeros(1, 1, SIZE, SIZE))
METHODS = ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer")

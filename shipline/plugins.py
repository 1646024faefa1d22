"""Things found by name: `name -> "module:attribute"`, imported only when somebody asks for them.

Other packages add their own through entry points of the group `shipline.<kind>`; what is built in is never replaced.
"""

from __future__ import annotations

import importlib
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from shipline.errors import MissingExtraError, unknown_name

BUILT_IN: dict[str, dict[str, str]] = {
    "step": {
        "columns": "shipline.processing.tabular:Columns",
        "decode_image": "shipline.processing.image:DecodeImage",
        "grayscale": "shipline.processing.image:Grayscale",
        "labels": "shipline.processing.answers:Labels",
        "layout": "shipline.processing.image:Layout",
        "normalize": "shipline.processing.image:Normalize",
        "resize": "shipline.processing.image:Resize",
        "rgb": "shipline.processing.image:Rgb",
        "sigmoid": "shipline.processing.answers:Sigmoid",
        "softmax": "shipline.processing.answers:Softmax",
        "tokenize": "shipline.processing.text:Tokenize",
        "top_k": "shipline.processing.answers:TopK",
    },
    "backend": {
        "aotinductor": "shipline.backends.aotinductor:AotInductorBackend",
        "onnxruntime": "shipline.backends.onnx:OnnxBackend",
        "onnxruntime-cuda": "shipline.backends.onnx_gpu:CudaBackend",
        "onnxruntime-tensorrt": "shipline.backends.onnx_gpu:TensorRtBackend",
        "openvino": "shipline.backends.openvino:OpenVinoBackend",
        "torch-export": "shipline.backends.exported:ExportedBackend",
        "torchscript": "shipline.backends.torchscript:TorchScriptBackend",
    },
    "converter": {
        "aotinductor": "shipline.export.convert.aotinductor:to_aotinductor",
        "onnx": "shipline.export.convert.onnx:to_onnx",
        "torch-export": "shipline.export.convert.exported:to_exported",
        "torchscript": "shipline.export.convert.torchscript:to_torchscript",
    },
    "accelerator": {
        "cpu": "shipline.train.accelerators.cpu:CpuAccelerator",
        "cuda": "shipline.train.accelerators.torch:TorchAccelerator",
        "gpu": "shipline.train.accelerators.torch:TorchAccelerator",
        "mps": "shipline.train.accelerators.torch:TorchAccelerator",
        "xpu": "shipline.train.accelerators.torch:TorchAccelerator",
    },
    "callback": {
        "BackboneFinetuning": "shipline.train.callbacks.finetuning:BackboneFinetuning",
        "BaseFinetuning": "shipline.train.callbacks.finetuning:BaseFinetuning",
        "BasePredictionWriter": "shipline.train.callbacks.prediction_writer:BasePredictionWriter",
        "BatchSizeFinder": "shipline.train.callbacks.batch_size_finder:BatchSizeFinder",
        "DeviceStatsMonitor": "shipline.train.callbacks.device_stats_monitor:DeviceStatsMonitor",
        "EMAWeightAveraging": "shipline.train.callbacks.weight_averaging:EMAWeightAveraging",
        "EarlyStopping": "shipline.train.callbacks.early_stopping:EarlyStopping",
        "GradientAccumulationScheduler": (
            "shipline.train.callbacks.gradient_accumulation_scheduler:GradientAccumulationScheduler"
        ),
        "LambdaCallback": "shipline.train.callbacks.lambda_function:LambdaCallback",
        "LearningRateFinder": "shipline.train.callbacks.lr_finder:LearningRateFinder",
        "LearningRateMonitor": "shipline.train.callbacks.lr_monitor:LearningRateMonitor",
        "ModelCheckpoint": "shipline.train.callbacks.model_checkpoint:ModelCheckpoint",
        "ModelPruning": "shipline.train.callbacks.pruning:ModelPruning",
        "ModelSummary": "shipline.train.callbacks.model_summary:ModelSummary",
        "OnExceptionCheckpoint": "shipline.train.callbacks.on_exception_checkpoint:OnExceptionCheckpoint",
        "OnlineEvaluator": "shipline.train.callbacks.online_evaluator:OnlineEvaluator",
        "ProgressBar": "shipline.train.callbacks.progress.progress_bar:ProgressBar",
        "QuantizationAwareTraining": "shipline.train.callbacks.quantization:QuantizationAwareTraining",
        "RichModelSummary": "shipline.train.callbacks.model_summary:ModelSummary",
        "RichProgressBar": "shipline.train.callbacks.progress.rich_progress:RichProgressBar",
        "SpikeDetection": "shipline.train.callbacks.spike:SpikeDetection",
        "StochasticWeightAveraging": "shipline.train.callbacks.stochastic_weight_avg:StochasticWeightAveraging",
        "TQDMProgressBar": "shipline.train.callbacks.progress.tqdm_progress:TQDMProgressBar",
        "ThroughputMonitor": "shipline.train.callbacks.throughput_monitor:ThroughputMonitor",
        "Timer": "shipline.train.callbacks.timer:Timer",
        "WeightAveraging": "shipline.train.callbacks.weight_averaging:WeightAveraging",
    },
    "strategy": {
        "ddp": "shipline.train.strategies.ddp:Ddp",
        "ddp_find_unused_parameters_false": "shipline.train.strategies.ddp:Ddp",
        "ddp_find_unused_parameters_true": "shipline.train.strategies.ddp:DdpFindUnusedParameters",
        "fsdp": "shipline.train.strategies.fsdp:Fsdp",
        "fsdp+tp": "shipline.train.strategies.fsdp:FsdpTensorParallel",
        "fsdp_cpu_offload": "shipline.train.strategies.fsdp:FsdpCpuOffload",
        "pp": "shipline.train.strategies.pipeline:Pipeline",
        "pp+fsdp": "shipline.train.strategies.pipeline:PipelineFsdp",
        "single_device": "shipline.train.strategies.base:Strategy",
        "tp": "shipline.train.strategies.fsdp:TensorParallel",
        "zero1": "shipline.train.strategies.zero:Zero1",
    },
    "environment": {  # in the order in which they are looked for
        "torchrun": "shipline.train.environments.torchrun:TorchElasticEnvironment",
        "kubernetes": "shipline.train.environments.kubernetes:KubernetesEnvironment",
        "mpi": "shipline.train.environments.mpi:MPIEnvironment",
        "slurm": "shipline.train.environments.slurm:SLURMEnvironment",
    },
    "logger": {
        "csv": "shipline.train.loggers.csv_logs:CSVLogger",
        "mlflow": "shipline.train.loggers.mlflow:MLFlowLogger",
        "tensorboard": "shipline.train.loggers.tensorboard:TensorBoardLogger",
        "wandb": "shipline.train.loggers.wandb:WandbLogger",
    },
    "profiler": {
        "simple": "shipline.train.profilers.simple:SimpleProfiler",
        "advanced": "shipline.train.profilers.advanced:AdvancedProfiler",
        "pytorch": "shipline.train.profilers.pytorch:PyTorchProfiler",
        "memory": "shipline.train.profilers.memory:MemoryProfiler",
    },
    "pass": {
        "dynamic-int8": "shipline.export.passes.dynamic_int8:DynamicInt8",
        "float16": "shipline.export.passes.float16:Float16",
        "mixed-int8": "shipline.export.passes.mixed_int8:MixedInt8",
        "prune-channels": "shipline.export.passes.prune_channels:PruneChannels",
        "prune-weights": "shipline.export.passes.prune_weights:PruneWeights",
        "pt2e-int8": "shipline.export.passes.pt2e_int8:Pt2eInt8",
        "smooth-quant": "shipline.export.passes.smooth_quant:SmoothQuant",
        "static-int8": "shipline.export.passes.static_int8:StaticInt8",
        "weights-int4": "shipline.export.passes.weights_int4:WeightsInt4",
        "weights-int8": "shipline.export.passes.weights_int8:WeightsInt8",
    },
    "precision": {
        "32-true": "shipline.train.precision.base:Precision",
        "64-true": "shipline.train.precision.true:TruePrecision",
        "16-true": "shipline.train.precision.true:TruePrecision",
        "bf16-true": "shipline.train.precision.true:TruePrecision",
        "16-mixed": "shipline.train.precision.mixed:MixedPrecision",
        "bf16-mixed": "shipline.train.precision.mixed:MixedPrecision",
        "fp8": "shipline.train.precision.fp8:Fp8Precision",
    },
}

# Which `pip install shipline[extra]` brings a module that failed to import.
EXTRAS = {
    "fastapi": "serve",
    "google": "grpc",
    "grpc": "grpc",
    "httptools": "serve",
    "jinja2": "export",
    "lazy_loader": "train",
    "matplotlib": "export",
    "mlflow": "loggers",
    "onnx": "export",
    "onnxruntime": "serve",
    "onnxscript": "export",
    "opentelemetry": "otel",
    "openvino": "openvino",
    "prometheus_client": "serve",
    "simdjson": "serve",
    "psutil": "train",
    "pyarrow": "parquet",
    "ray": "ray",
    "safetensors": "train",
    "s3fs": "s3",
    "starlette": "serve",
    "sympy": "export",
    "gcsfs": "gcs",
    "adlfs": "azure",
    "tensorboard": "loggers",
    "tokenizers": "text",
    "torch": "train",
    "torch_pruning": "prune",
    "torchao": "quantize",
    "tqdm": "train",
    "transformers": "huggingface",
    "uvicorn": "serve",
    "uvloop": "serve",
    "wandb": "loggers",
}


def known(kind: str) -> dict[str, str]:
    """Return the names of the plug-ins of `kind`, and what each stands for; those of other packages first."""
    found = {point.name: point.value for point in _declared().select(group=f"shipline.{kind}")}
    return found | BUILT_IN.get(kind, {})


@cache
def _declared() -> Any:  # SelectableGroups in Python 3.11, EntryPoints after it
    """Read what all installed packages declare, once: it takes milliseconds."""
    return entry_points()


def load(kind: str, name: str) -> Any:
    """Import the plugin `name` of `kind`.

    Raises:
        UnknownNameError: no such name; the message lists those known.
        MissingExtraError: what it needs is not installed; the message says which extra brings it.
    """
    names = known(kind)
    if name not in names:
        raise unknown_name(kind, name, names)
    return load_target(names[name])


def load_target(target: str) -> Any:
    """Import `"module:attribute"`, or a whole `"module"`; a missing optional dependency becomes a MissingExtraError."""
    module, _, attribute = target.partition(":")
    try:
        imported = importlib.import_module(module)
        return getattr(imported, attribute) if attribute else imported
    except ModuleNotFoundError as error:
        raise missing_extra(error) from error


def missing_extra(error: ModuleNotFoundError) -> ImportError:
    """Return the error that says which extra brings the missing module, or `error` itself where none does."""
    package = (error.name or "").partition(".")[0]
    if package not in EXTRAS:
        return error
    extra = EXTRAS[package]
    return MissingExtraError(f"This needs {package!r}, which is not installed. Run: pip install 'shipline[{extra}]'")

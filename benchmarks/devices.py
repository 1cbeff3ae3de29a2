"""Boards and cards that are not here: their published rates, and where each stands.

Looked up again on 2026-11-27 in stored copies of public pages: data sheets in word-for-word extracts, or a mirror where
NVIDIA's own copy asks for a login. What no document prints is derived, and says so. Sparse figures are never used:
they hold for weights pruned two of four ("up to 2x higher performance for inference of sparse models", DS-10662-001).
"""

from __future__ import annotations

from dataclasses import dataclass

from layers import Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Dense rates in 10^12 operations a second and memory bandwidth in GB/s.

    ``fp32``: of the CUDA cores, TF32 not used; ``fp16`` and ``int8``: of the tensor cores; ``fp16_vector``: of the CUDA
    cores in FP16.
    """

    fp32: float
    fp16: float
    int8: float
    fp16_vector: float
    gb_s: float
    source: str

    def rate(self, precision: Precision) -> float:
        """Operations a second on matrices."""
        return {"fp32": self.fp32, "fp16": self.fp16, "int8": self.int8}[precision] * 1e12

    def vector_rate(self, precision: Precision) -> float:
        """Operations a second one by one; what is not a product is FP16 in an INT8 engine."""
        return (self.fp32 if precision == "fp32" else self.fp16_vector) * 1e12


_NANO = (
    "Jetson Orin Nano Series Data Sheet DS-11105-001, https://connecttech.com/ftp/pdf/nvidia_jetson_orin_datasheet.pdf"
)
_NX = (
    "Jetson Orin NX Series Data Sheet DS-10712-001 v1.7, "
    "https://developer.nvidia.com/downloads/jetson-orin-nx-module-series-data-sheet"
)
_AGX = (
    "Jetson AGX Orin Series Data Sheet DS-10662-001 v1.8, "
    "https://static.generation-robots.com/media/Jetson-AGX-Orin-Data-Sheet.pdf"
)
_SUPER = "https://developer.nvidia.com/blog/nvidia-jetson-orin-nano-developer-kit-gets-a-super-boost/"
_THOR = "https://developer.nvidia.com/blog/introducing-nvidia-jetson-thor-the-ultimate-platform-for-physical-ai/"
_ADA = "https://www.nvidia.com/en-us/geforce/graphics-cards/40-series/rtx-4060-4060ti/"
_HALF = "FP16 half of INT8, as tensor cores of this generation have it"

DEVICES = {
    "Orin Nano 8 GB": Device(
        fp32=1.28,
        fp16=10.0,
        int8=20.0,
        fp16_vector=2.56,
        gb_s=68.0,
        source=f'{_NANO}: "up to 40 (Sparse) INT8 TOPs and 20 (Dense) INT8 TOPs", no DLA, 1024 CUDA cores, 625 MHz, '
        f'"68 GB/s"; derived: FP32 1024 x 2 x 625 MHz, {_HALF}',
    ),
    "Orin Nano 8 GB Super": Device(
        fp32=2.09,
        fp16=17.0,
        int8=33.0,
        fp16_vector=4.18,
        gb_s=102.0,
        source=f"{_SUPER}, as quoted: 67 sparse and 33 dense INT8 TOPS, FP16 17, 1020 MHz; developer kit's user guide, "
        'https://docs.nvidia.com/jetson/orin-nano-devkit/user-guide/latest/index.html: "up to 102 GB/s"; derived: FP32',
    ),
    "Orin NX 16 GB": Device(
        fp32=1.88,
        fp16=15.0,
        int8=30.0,
        fp16_vector=3.76,
        gb_s=102.0,
        source=f"{_NX}, MAXN: 100 sparse and 50 dense INT8 TOPS of the module, of which its two DLAs are 40 sparse; "
        f"1024 CUDA cores, 918 MHz, 102 GB/s; derived: GPU (100 - 40) / 2 dense, {_HALF}, FP32",
    ),
    "Orin NX 16 GB Super": Device(
        fp32=2.4,
        fp16=19.25,
        int8=38.5,
        fp16_vector=4.8,
        gb_s=102.0,
        source=f"{_NX}, MAXN_SUPER: 157 sparse and 78 dense INT8 TOPS of the module, of which its two DLAs are 80 "
        f'sparse; 1173 MHz, "2.40 FP32 / 4.80 FP16 TFLOPs" of the CUDA cores; derived: GPU (157 - 80) / 2, {_HALF}',
    ),
    "AGX Orin 64 GB": Device(
        fp32=5.3,
        fp16=42.5,
        int8=85.0,
        fp16_vector=10.6,
        gb_s=204.8,
        source=f'{_AGX}: "170 Sparse TOPS" of the GPU (the module\'s 275 count 105 of its DLAs), 2048 CUDA cores, 1.3 '
        f'GHz, "204.8 GB/s"; derived: dense half of sparse, {_HALF}, FP32 2048 x 2 x 1.3 GHz',
    ),
    "AGX Thor": Device(
        fp32=8.0,
        fp16=258.0,
        int8=517.0,
        fp16_vector=16.1,
        gb_s=273.0,
        source=f"{_THOR}, as quoted, T5000: FP8 1035 sparse, 517 dense; FP16 517 sparse; 273 GB/s; 2560 CUDA cores; "
        "INT8 as FP8; derived: FP16 half of sparse, FP32 2560 x 2 x 1.57 GHz, FP16 of the CUDA cores twice that",
    ),
    "RTX 4060": Device(
        fp32=15.1,
        fp16=30.2,
        int8=121.0,
        fp16_vector=15.1,
        gb_s=272.0,
        source=f"{_ADA} (242 AI TOPS, which are sparse; 272 GB/s), not in the stored copies; as listed at "
        "https://hmc-tech.com/gpu/nvidia-geforce-rtx-4060-vs-nvidia-geforce-rtx-4060: FP32 15.11, tensor FP16 with "
        "FP32 accumulation 30.23 dense, FP8 241.83 sparse; derived: INT8 as FP8, half of sparse",
    ),
}

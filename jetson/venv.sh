#!/usr/bin/env bash
# The line's virtual environment over the system's TensorRT and OpenCV: for install.sh, and for containers as a program:
# venv.sh VENV WHEEL CUDA_ROOT [PIP OPTIONS...]
# Whoever reads it in brings act, fail and say, and in LOG where output goes.

EXTRAS=cpu,mqtt,modbus,gpio,sign
OLDEST_OPENCV=4.5.4 # Ubuntu 22.04's
opencv_version='' numpy_version='' pip_sources=()

is_older() { # is_older 4.5.4 4.8: by numbers
    [ "$1" != "$2" ] && [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]
}

ask_python() { # ask_python PYTHON CODE ARGUMENTS...: in a folder without modules, without the user's own packages
    (cd / && "$1" -s -c "${@:2}" 2>>"$LOG")
}

look_at_system_python() { # -> opencv_version, numpy_version: what the venv will see
    local found
    opencv_version=$(ask_python python3 'import cv2; print(cv2.__version__.split("-")[0])') ||
        fail "apt's OpenCV cannot be imported by $(python3 --version)" \
            "make python3 the system's own again, or sudo apt-get install --reinstall python3-opencv; the reason is in $LOG"
    numpy_version=$(ask_python python3 'import numpy; print(numpy.__version__)')
    found=$(ask_python python3 'import cv2; print(cv2.__file__)')
    if ! ask_python python3 'import cv2, re; assert re.search(r"GStreamer:\s+YES", cv2.getBuildInformation())'; then
        fail "OpenCV $opencv_version at $found has no GStreamer" \
            "one of pip's lies over apt's: sudo python3 -m pip uninstall opencv-python opencv-python-headless opencv-contrib-python"
    fi
    if is_older "$opencv_version" "$OLDEST_OPENCV"; then
        fail "OpenCV $opencv_version at $found, expected $OLDEST_OPENCV or newer" "sudo apt-get install --reinstall python3-opencv"
    fi
    say "  sees OpenCV $opencv_version with GStreamer ($found), numpy $numpy_version"
}

fill_venv() { # fill_venv VENV WHEEL CUDA_ROOT
    act python3 -m venv --system-site-packages "$1"
    keep_system_opencv "$1"
    act "$1/bin/python" -m pip install "${pip_sources[@]}" "$2[$EXTRAS]"
    install_pycuda "$1" "$3"
}

# pip knows nothing of apt's OpenCV and would lay its own, which has no GStreamer, over it. So the venv gets a record
# of the system's (a dist-info without files), and a constraint in its pip.conf by which pip refuses every other one:
# later `pip install` in this venv, too, keeps to it. OpenCV's binary was built against the system's numpy, whose major
# version must therefore stay. torch is not for the line.
keep_system_opencv() { # keep_system_opencv VENV
    local site name=opencv_python_headless-$opencv_version+system.dist-info
    site=$("$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    mkdir -p "$site/$name"
    printf 'Metadata-Version: 2.1\nName: opencv-python-headless\nVersion: %s+system\nSummary: stands for the OpenCV of apt\n' \
        "$opencv_version" >"$site/$name/METADATA"
    echo rdedge-install >"$site/$name/INSTALLER"
    printf '%s,,\n' "$name/METADATA" "$name/INSTALLER" "$name/RECORD" >"$site/$name/RECORD"
    cat >"$1/constraints.txt" <<END
opencv-python-headless==$opencv_version+system
opencv-python<0
opencv-contrib-python<0
opencv-contrib-python-headless<0
numpy>=$numpy_version,<$((${numpy_version%%.*} + 1))
torch<0
torchvision<0
END
    printf '[global]\nconstraint = %s/constraints.txt\n' "$1" >"$1/pip.conf"
}

# pycuda comes as source. Its settings are read from a file in HOME; pip's cache may hold one built for another CUDA.
install_pycuda() { # install_pycuda VENV CUDA_ROOT
    local root=$2 home=$1/pycuda-settings libraries=/usr/lib/aarch64-linux-gnu
    mkdir -p "$home"
    cat >"$home/.aksetup-defaults.py" <<END
CUDA_ROOT = "$root"
CUDA_INC_DIR = ["$root/include"]
CUDART_LIB_DIR = ["$root/lib64"]
CUDADRV_LIB_DIR = ["$libraries/nvidia", "$libraries/tegra", "$root/lib64/stubs"]
CUDA_ENABLE_CURAND = False
END
    act env HOME="$home" PATH="$root/bin:$PATH" "$1/bin/python" -m pip install --no-cache-dir "${pip_sources[@]}" pycuda
    rm -rf "$home"
}

check_venv() { # check_venv VENV: imports what a line imports, and that nothing of it is the wrong one
    ask_python "$1/bin/python" '
import sys, sysconfig
import numpy, cv2, msgspec, onnxruntime, gi, rdedge.cli, rdedge_export.engine_verb
from importlib import util
own = sysconfig.get_path("purelib")
assert not cv2.__file__.startswith(own), f"OpenCV is not the one of apt: {cv2.__file__}"
assert numpy.__version__.split(".")[0] == sys.argv[1].split(".")[0], f"numpy {numpy.__version__}"
torch = util.find_spec("torch")
assert torch is None or not str(torch.origin).startswith(own), "torch is in the virtual environment"
ok, data = cv2.imencode(".png", numpy.full((4, 4, 3), 7, numpy.uint8))
assert ok and (cv2.imdecode(data, cv2.IMREAD_COLOR) == 7).all(), "OpenCV and numpy do not fit together"
' "$numpy_version" && "$1/bin/rdedge" --version >>"$LOG" 2>&1
}

check_nvidia() { # check_nvidia VENV: what needs the board's driver, which is absent while an image is built
    ask_python "$1/bin/python" 'import tensorrt, pycuda.driver'
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    set -euo pipefail
    LOG=/dev/stderr
    say() { printf '%s\n' "$*"; }
    fail() { printf 'venv.sh: error: %s; %s\n' "$1" "$2" >&2; exit 2; }
    act() { "$@" || fail "this failed: $*" "see the lines above"; }
    [ $# -ge 3 ] || fail "$# arguments" "give VENV WHEEL CUDA_ROOT, then options of pip"
    pip_sources=("${@:4}")
    look_at_system_python
    fill_venv "$1" "$2" "$3"
    check_venv "$1" || fail "the virtual environment is not fit for use" "see the lines above"
fi

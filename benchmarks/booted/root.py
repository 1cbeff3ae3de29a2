"""Disks of an emulated board: Debian with kernel, virtual camera and pins, dressed as a Jetson, rdedge installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from dressed_board import CORE, ORIN, RELEASE, copy_driver, device_tree, dress
from rdedge.errors import UsageError

REPOSITORY = Path(__file__).parents[2]
MIRROR, SUITE = "http://deb.debian.org/debian", "bookworm"
PACKAGES = (
    "systemd-sysv udev dbus kmod procps passwd ca-certificates python3 python3-venv python3-numpy python3-opencv "
    "python3-gi v4l-utils linux-image-amd64 initramfs-tools zstd"
)
_BUILT = "linux-headers-amd64 linux-source-6.1 gcc make libc6-dev xz-utils"  # for gpio-sim alone
PLACE = "/root/rdedge"  # where the checkout's jetson/ and the wheels lie on the board
DATA_MB = 160

# Debian's kernel has no gpio-sim, but its source has; IRQ_SIM, which that needs, goes into the same module.
_GPIO_SIM = """
set -e
cd /usr/src
tar xf linux-source-6.1.tar.xz --strip-components 1 --one-top-level=sim \
    --wildcards '*/drivers/gpio/gpio-sim.c' '*/drivers/gpio/gpiolib.h' '*/kernel/irq/irq_sim.c'
mkdir -p gpio-sim
mv sim/drivers/gpio/gpio-sim.c gpio-sim/sim.c
mv sim/drivers/gpio/gpiolib.h sim/kernel/irq/irq_sim.c gpio-sim
rm -r sim
sed -i 's/handle_simple_irq(irq_to_desc(irqnum))/generic_handle_irq(irqnum)/' gpio-sim/irq_sim.c
printf 'obj-m := gpio-sim.o\\ngpio-sim-objs := sim.o irq_sim.o\\n' >gpio-sim/Makefile
version=$(ls /lib/modules)
make -s -C "/lib/modules/$version/build" M=/usr/src/gpio-sim modules
install -m 644 -D gpio-sim/gpio-sim.ko "/lib/modules/$version/extra/gpio-sim.ko"
depmod "$version"
"""
# The board's hardware, before anything of ours starts: a camera (320x180 and more, YUYV), a chip of eight pins, and the
# device tree of an Orin, for which a memory file system lies over /sys/firmware.
_HARDWARE = """#!/bin/sh
set -e
mount -t tmpfs tmpfs /sys/firmware
mkdir -p /sys/firmware/devicetree/base
cp /usr/local/lib/board/compatible /sys/firmware/devicetree/base/
modprobe gpio-sim
mkdir -p /sys/kernel/config/gpio-sim/board/bank
echo 8 >/sys/kernel/config/gpio-sim/board/bank/num_lines
echo 1 >/sys/kernel/config/gpio-sim/board/live
test -e /etc/board-without-camera || modprobe vivid n_devs=1 node_types=0x1 num_inputs=1 input_types=0
"""
_UNITS = {
    "board-hardware.service": """[Unit]
DefaultDependencies=no
After=systemd-udevd.service systemd-modules-load.service sys-kernel-config.mount local-fs.target
Before=sysinit.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/lib/board/hardware.sh
[Install]
WantedBy=sysinit.target
""",
    "board-agent.service": """[Unit]
DefaultDependencies=no
After=sysinit.target
[Service]
ExecStart=/usr/bin/python3 /usr/local/lib/board/agent.py
Restart=always
[Install]
WantedBy=multi-user.target
""",
}
_FSTAB = "/dev/vda / ext4 defaults 0 1\n/dev/vdb /var/lib/rdedge ext4 defaults 0 2\n"
_ENTER = """
set -e
mount -t overlay overlay -o "lowerdir={at}/base,upperdir={at}/upper,workdir={at}/overlay" "{at}/mnt"
mount -t proc proc "{at}/mnt/proc"
mount --rbind /dev "{at}/mnt/dev"
mount -t tmpfs tmpfs "{at}/mnt/run"
mount -t tmpfs tmpfs "{at}/mnt/sys"
mkdir -p "{at}/mnt/sys/firmware/devicetree/base"
cp "{at}/mnt/usr/local/lib/board/compatible" "{at}/mnt/sys/firmware/devicetree/base/"
chroot "{at}/mnt" sh -e -c '{commands}'
umount -R "{at}/mnt/proc" "{at}/mnt/dev" "{at}/mnt/run" "{at}/mnt/sys"
rm -f "{at}/root.ext4"
mke2fs -q -F -t ext4 -d "{at}/mnt" "{at}/root.ext4" 6G
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disks:
    """What QEMU is given: kernel and initial RAM disk, the board's root, and /var/lib/rdedge."""

    kernel: Path
    initrd: Path
    root: Path
    data: Path


def make_base(work: Path) -> Path:
    """Debian with all packages and gpio-sim, below ``work``; kept for the next run. Raises UsageError."""
    base, stamp = work / "base", work / "base.packages"
    wanted = f"{PACKAGES} {_BUILT}{_GPIO_SIM}"
    if stamp.exists() and stamp.read_text() == wanted:
        return base
    stamp.unlink(missing_ok=True)
    shutil.rmtree(base, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    _run("debootstrap", "--variant=minbase", SUITE, str(base), MIRROR)
    install = f"apt-get -q update; apt-get -q -y install --no-install-recommends {PACKAGES} {_BUILT}; apt-get clean"
    for script in (f"set -e; export DEBIAN_FRONTEND=noninteractive; {install}", _GPIO_SIM):
        inside = f'mount -t proc proc "{base}/proc"; mount --rbind /dev "{base}/dev"; exec chroot "{base}" sh -c "$0"'
        _run("unshare", "--mount", "--propagation", "private", "sh", "-e", "-c", inside, script)
    stamp.write_text(wanted)
    return base


def make_disks(work: Path, wheels: Path, driver: Path, bundle: Path) -> Disks:
    """The board after ``jetson/install.sh`` in a chroot, and a small disk with the bundle for its data."""
    base = make_base(work)
    for name in ("upper", "overlay", "mnt"):
        shutil.rmtree(work / name, ignore_errors=True)
        (work / name).mkdir()
    _dress(work / "upper", base, wheels, driver)
    commands = (
        "systemd-machine-id-setup >/dev/null; systemctl enable -q board-hardware board-agent; "
        f"bash {PLACE}/jetson/install.sh --wheels {PLACE}/wheels >&2"
    )
    script = _ENTER.format(at=work, commands=commands)
    _run("unshare", "--mount", "--propagation", "private", "sh", "-e", "-c", script)
    data = work / "data"
    shutil.rmtree(data, ignore_errors=True)
    shutil.copytree(bundle, data / "bundle")
    (work / "data.ext4").unlink(missing_ok=True)
    _run("mke2fs", "-q", "-F", "-t", "ext4", "-d", str(data), str(work / "data.ext4"), f"{DATA_MB}M")
    (kernel,), (initrd,) = (base / "boot").glob("vmlinuz-*"), (base / "boot").glob("initrd.img-*")
    return Disks(kernel=kernel, initrd=initrd, root=work / "root.ext4", data=work / "data.ext4")


def _dress(layer: Path, base: Path, wheels: Path, driver: Path) -> None:
    dress(layer, RELEASE, CORE, {}, "aarch64")
    status = layer / "var/lib/dpkg/status"
    status.write_text((base / "var/lib/dpkg/status").read_text().rstrip("\n") + "\n\n" + status.read_text())
    copy_driver(driver / "lib/libcuda.so.1", layer, f"{os.uname().machine}-linux-gnu")
    shutil.copytree(REPOSITORY / "jetson", layer / PLACE[1:] / "jetson")
    shutil.copytree(wheels, layer / PLACE[1:] / "wheels")
    files = {f"etc/systemd/system/{name}": text for name, text in _UNITS.items()}
    files |= {
        "etc/fstab": _FSTAB,
        "etc/hostname": "board\n",
        "usr/local/lib/board/hardware.sh": _HARDWARE,
        "usr/local/lib/board/agent.py": (Path(__file__).parent / "agent.py").read_text(),
        "usr/local/lib/board/compatible": device_tree(ORIN),
    }
    for name, text in files.items():
        path = layer / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755 if name.endswith(".sh") else 0o644)


def _run(*command: str) -> None:
    """Raises UsageError with the end of what a command said."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    if done.returncode != 0:
        raise UsageError(f"{command[0]} failed: {done.stdout.strip()[-3000:]}", remedy="see the error above")

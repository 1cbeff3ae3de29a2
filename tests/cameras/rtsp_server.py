"""A real RTSP camera on loopback: ``rtsp_server.py PORT [--user NAME --password WORD] [--freeze-after N]``.

H.264 by x264 behind GStreamer's RTSP server at rtsp://127.0.0.1:PORT/line. Debian: gir1.2-gst-rtsp-server-1.0
gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-ugly.
"""

from __future__ import annotations

import argparse

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

LAUNCH = (
    "( videotestsrc is-live=true pattern=ball background-color=0xff606060 foreground-color=0xffd0b090"
    " ! video/x-raw,format=I420,width={width},height={height},framerate={fps}/1"
    " ! x264enc tune=zerolatency speed-preset=ultrafast key-int-max=12 bitrate=2000"
    " ! rtph264pay name=pay0 pt=96 config-interval=1 )"
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port")
    parser.add_argument("--size", default="320x240")
    parser.add_argument("--fps", type=int, default=25)
    parser.add_argument("--user")
    parser.add_argument("--password")
    args = parser.parse_args()
    Gst.init(None)
    width, height = args.size.split("x")
    server = GstRtspServer.RTSPServer(address="127.0.0.1", service=args.port)
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(LAUNCH.format(width=width, height=height, fps=args.fps))
    factory.set_shared(True)
    if args.user:
        _protect(server, factory, args.user, args.password)
    server.get_mount_points().add_factory("/line", factory)
    if server.attach(None) == 0:
        raise SystemExit(f"port {args.port} is taken")
    print("ready", flush=True)
    GLib.MainLoop().run()


def _protect(server: GstRtspServer.RTSPServer, factory: GstRtspServer.RTSPMediaFactory, user: str, word: str) -> None:
    auth = GstRtspServer.RTSPAuth()
    auth.set_supported_methods(0)
    token = GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", "viewer")
    auth.add_basic(GstRtspServer.RTSPAuth.make_basic(user, word), token)
    auth.set_supported_methods(1)  # GST_RTSP_AUTH_BASIC
    server.set_auth(auth)
    permissions = GstRtspServer.RTSPPermissions()
    for what in ("access", "construct"):
        permissions.add_permission_for_role("viewer", f"media.factory.{what}", True)
    factory.set_permissions(permissions)


if __name__ == "__main__":
    main()

"""What Python's tarfile reads of archives: a line of JSON for each, which come as a length (32 bits, little-endian) and bytes."""
import hashlib
import io
import json
import struct
import sys
import tarfile

KINDS = {
    tarfile.LNKTYPE: "HardLink", tarfile.SYMTYPE: "Symlink", tarfile.CHRTYPE: "Char",
    tarfile.BLKTYPE: "Block", tarfile.DIRTYPE: "Dir", tarfile.FIFOTYPE: "Fifo",
}


def raw(text):
    return text.encode("utf-8", "surrogateescape").hex()


def entries(archive):
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
        for m in tar:
            kind = "File" if m.isreg() else KINDS[m.type]
            data = tar.extractfile(m).read() if kind == "File" else b""
            device = [m.devmajor, m.devminor] if kind in ("Char", "Block") else [0, 0]
            prefix = "SCHILY.xattr."
            xattrs = {raw(k[len(prefix):]): raw(v) for k, v in m.pax_headers.items() if k.startswith(prefix)}
            yield {
                "path": raw(m.name.rstrip("/")), "kind": kind, "mode": m.mode & 0o7777, "uid": m.uid, "gid": m.gid,
                "link": raw(m.linkname) if kind in ("HardLink", "Symlink") else "", "device": device,
                "size": len(data), "data": hashlib.sha256(data).hexdigest(), "mtime": float(m.mtime), "xattrs": xattrs,
            }


while head := sys.stdin.buffer.read(4):
    archive = sys.stdin.buffer.read(struct.unpack("<I", head)[0])
    try:
        print(json.dumps(list(entries(archive))))
    except Exception as error:
        print(json.dumps({"error": repr(error)}))

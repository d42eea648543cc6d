#!/usr/bin/env python3
"""kubelet's calls to a container runtime: cri.py SOCKET METHOD FIELDS, prints the answer.

FIELDS and the answer are JSON, with the numbers of the protocol's fields for names:
{"1": {"1": "name"}}. A value in the answer is a list, as a field may come several times; what
is no text and no message is shown as a number or in hexadecimal.
"""
import json
import sys

import grpc


def varint(value):
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes(out + bytes([value]))


def encode(fields):
    out = b""
    for number, values in fields.items():
        for value in values if isinstance(values, list) else [values]:
            if isinstance(value, int):
                out += varint(int(number) << 3) + varint(value)
                continue
            data = encode(value) if isinstance(value, dict) else value.encode()
            out += varint(int(number) << 3 | 2) + varint(len(data)) + data
    return out


def decode(data):
    """A message's fields; raises where the bytes are none."""
    at, fields = 0, {}

    def number():
        nonlocal at
        value, shift = 0, 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        key = number()
        kind = key & 7
        if key >> 3 == 0:
            raise ValueError("no field")
        if kind == 0:
            value = number()
        elif kind == 2:
            length = number()
            part, at = data[at : at + length], at + length
            if len(part) != length:
                raise ValueError("cut off")
            value = show(part)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            value, at = int.from_bytes(data[at : at + size], "little"), at + size
        else:
            raise ValueError("no kind")
        fields.setdefault(str(key >> 3), []).append(value)
    return fields


def show(part):
    text = part.decode(errors="replace")
    if text.isprintable() or (text and all(c.isprintable() or c in "\n\t\r" for c in text)):
        return text
    try:
        return decode(part)
    except (ValueError, IndexError):
        return part.hex()


def main():
    socket, method, fields = sys.argv[1:]
    service = "ImageService" if "Image" in method else "RuntimeService"
    with grpc.insecure_channel(f"unix:{socket}") as channel:
        call = channel.unary_unary(
            f"/runtime.v1.{service}/{method}", request_serializer=encode, response_deserializer=decode
        )
        try:
            print(json.dumps(call(json.loads(fields), timeout=120)))
        except grpc.RpcError as error:
            sys.exit(f"{method}: {error.code().name}: {error.details()}")


main()

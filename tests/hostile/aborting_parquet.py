"""Parquet files of 343 bytes, one byte of them wrong, on which the Parquet library ends or confuses its process."""

import base64
import zlib

_WHOLE = zlib.decompress(
    base64.b85decode(
        b"c-n1{zY4-I5XLVhgbpqa7aGWrrNyC&3OaRhcMwOnv<7t0#?(JA=8O3TUPYyd!+jU-zVG;v)nYwCK!YYnP7i@X&tbsI"
        b"gxP){03s^R7^!Wg{Ab=Ktokumt!$C2Vg`w5s+~Jn<bb_2N`w#f!JkuDYBIe>ad3^VkBxf|C0API8EEXORDk+qkT!B7"
        b"H(6YCD3vA{zz7P;36%k-6P@t)`Zrz{9qzwzd1sPmF*O(%Z^P;0&cn+4p$(zFnX3!UzCN1id^8?SR8G(>_k(IhU-|@$"
        b"J~OW"
    )
)


def _edited(at: int, value: int) -> bytes:
    return _WHOLE[:at] + bytes([value]) + _WHOLE[at + 1 :]


ABORTING = {
    "texts are declared truth values": _edited(112, 0),
    "texts are declared integers": _edited(112, 2),
    "a column is declared required": _edited(114, 0),
}
"""What the footer counts of the column's levels or bytes then does not fit: an exception that nothing catches."""
DECLARED_ROWS = _edited(178, 0)
"""A row group that declares rows it does not hold."""

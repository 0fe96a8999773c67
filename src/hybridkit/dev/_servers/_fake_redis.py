"""`python -m hybridkit.dev._servers._fake_redis PORT`: run fakeredis on a loopback port until it is killed."""

import sys

from fakeredis import TcpFakeServer

from hybridkit.dev._servers._probes import LOOPBACK

if __name__ == "__main__":
    TcpFakeServer((LOOPBACK, int(sys.argv[1]))).serve_forever()

"""Write a trained supernet as it goes into the package: weights as float16, half the size.

    python tools/ship_supernet.py CKPT --out supernet/shipped/NAME.safetensors

What is evaluated, fitted and measured for it afterwards has to use the file written here, as the
rounded weights have a digest of their own.
"""

import argparse
from pathlib import Path

from bignas.supernet.checkpoint import load_checkpoint, save_checkpoint


def main() -> None:
    """Read, round and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    _, checkpoint = load_checkpoint(options.checkpoint)
    save_checkpoint(options.out, checkpoint, halved=True)
    print(f"{options.out}: {options.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()

"""What SimpleITK alone needs to make a ``.nii.gz``: prints seconds and kilobytes."""

import resource
import sys
import time
from pathlib import Path

import SimpleITK


def main(source: Path, target: Path) -> None:
    """Read a volume and write it."""
    begin = time.perf_counter()
    if source.is_dir():
        reader = SimpleITK.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(source)))
        image = SimpleITK.Cast(reader.Execute(), SimpleITK.sitkInt16)
    else:
        image = SimpleITK.ReadImage(str(source))
    SimpleITK.WriteImage(image, str(target), useCompression=True)
    print(time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

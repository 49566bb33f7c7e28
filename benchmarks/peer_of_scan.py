"""Look for bad images in a folder by cleanvision or fastdup: `python peer_of_scan.py NAME FOLDER WORK`.

For ``benchmarks.scan_peers``, run by a Python that has these packages and not datapool.
"""

import sys


def main() -> None:
    """Run one of them by default settings, with one process or thread."""
    name, folder, work = sys.argv[1:]
    if name == "cleanvision":
        from cleanvision import Imagelab

        Imagelab(data_path=folder).find_issues(n_jobs=1, verbose=False)
    else:
        import fastdup

        fastdup.create(work_dir=work, input_dir=folder).run(num_threads=1, overwrite=True, print_summary=False)


if __name__ == "__main__":
    main()

"""`make bench`: what the bridge costs over raw ComfyUI."""

from benchmarks.bridge import main

if __name__ == "__main__":
    main()

"""Control images out of any image: Canny edges, depth maps, pose skeletons."""

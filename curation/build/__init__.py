"""From a manifest to tables: the stages of a build, what it holds, and looking at it before and after."""

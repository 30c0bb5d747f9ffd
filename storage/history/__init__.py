"""Questions about the history of one repository at one revision.

This package owns the choice of what answers each of them:

walks, counts, ancestry, merge bases: own walks over the derived commit graph (storage/git), which
    read 25,000 commits without inflating one and are right under any clock
trees, paths, archives, search, fsck: own code on `PackSet`. Existence is decided by the packs of
    the revision alone, and SHA-1 and SHA-256 are answered by the same code
changed paths, renames: own comparison of trees and git's own scoring of renames; libgit2 scores by
    another method and finds other renames
lines (patches, counts, blame): libgit2's xdiff on two buffers, `pygit2.Patch`. It is git's xdiff,
    so these are git's hunks; `difflib` finds others

libgit2 never opens a repository here, so it has no opinion on what exists, and that it refuses
SHA-256 does not matter. Its own blame differs from git's in one file of ten; ours passes lines to
parents as git does, through renames too. `tests/unit/history` holds all of it equal to C git's on
random histories.

Must not know refs, sockets or messages. Nothing here writes into a repository.
"""

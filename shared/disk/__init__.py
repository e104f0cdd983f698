"""Room on disks: how much there is, when that is too little, and the words for it."""

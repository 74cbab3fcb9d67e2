"""Tell runs apart, list, tag and delete them, without torch. See `listing` and `differences`."""

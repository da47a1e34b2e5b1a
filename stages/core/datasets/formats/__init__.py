"""The forms in which people keep the tags of images, each read into :class:`stages.core.datasets.tagged.TaggedFile`."""

package main

import (
	"noded.dev/noded/imagestore"
)

// images looks at the files that pulls depend on. One that is broken costs the
// pulls that need it, and those only show when they come.
func (i *inspector) images() {
	problems := imagestore.Inspect(imageOptions(i.cfg))
	for _, err := range problems {
		i.add(levelWarn, "images", err.Error(), "correct it; pulls that need it fail until then")
	}
	if len(problems) == 0 {
		i.ok("images", "registry credentials can be read, where there are any")
	}
}

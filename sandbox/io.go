package sandbox

import "noded.dev/noded/runtime"

// IO and Size are what a streaming session brings; package cri passes them
// without knowing the runtime behind.
type (
	IO   = runtime.IO
	Size = runtime.Size
)

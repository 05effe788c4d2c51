package cri

import (
	"math"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	api "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/internal/kind"
)

// Limits on what a request may bring. They are far above what a kubelet sends
// and keep one request from filling the records and every List reply.
const (
	maxID       = 128     // bytes of an id; noded's own have 64
	maxName     = 1 << 10 // bytes of a metadata name, uid or namespace
	maxLabels   = 1000    // entries of a label or annotation map
	maxMaps     = 1 << 20 // bytes of all labels and annotations together
	maxConfig   = 4 << 20 // bytes of a whole pod or container config
	maxImageRef = 4 << 10 // bytes of an image reference
	maxCommand  = 2 << 20 // bytes of an exec command; Linux's own limit (ARG_MAX) is 2 MiB
)

// plausibleID reports whether id can be one of noded's ids, or a prefix. Others
// are unknown without being looked up; an empty one must never reach a lookup
// by prefix, where it would match everything.
func plausibleID(id string) bool {
	return id != "" && len(id) <= maxID && strings.IndexFunc(id, func(r rune) bool {
		return !(r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r == '-' || r == '_' || r == '.')
	}) < 0
}

// checkID is plausibleID as an error; what is "container" or "pod".
func checkID(what, id string) error {
	if plausibleID(id) {
		return nil
	}
	if len(id) > maxID {
		id = id[:maxID] + "…"
	}
	return kind.Errorf(kind.NotFound, "no %s has the id %q", what, id)
}

func checkPodConfig(c *api.PodSandboxConfig) error {
	m := c.GetMetadata()
	switch {
	case c == nil:
		return kind.Errorf(kind.Invalid, "pod config is missing")
	case m == nil:
		return kind.Errorf(kind.Invalid, "pod config: metadata is missing")
	}
	for _, f := range []struct{ name, value string }{
		{"name", m.Name}, {"uid", m.Uid}, {"namespace", m.Namespace},
	} {
		if err := checkName("pod metadata: "+f.name, f.value); err != nil {
			return err
		}
	}
	if err := checkMaps("pod config", c.Labels, c.Annotations); err != nil {
		return err
	}
	return checkConfigSize("pod config", c)
}

func checkContainerConfig(c *api.ContainerConfig) error {
	switch {
	case c == nil:
		return kind.Errorf(kind.Invalid, "container config is missing")
	case c.Metadata == nil:
		return kind.Errorf(kind.Invalid, "container config: metadata is missing")
	}
	if err := checkName("container metadata: name", c.Metadata.Name); err != nil {
		return err
	}
	if err := checkImage(c.Image); err != nil {
		return err
	}
	if err := checkMaps("container config", c.Labels, c.Annotations); err != nil {
		return err
	}
	return checkConfigSize("container config", c)
}

func checkName(what, value string) error {
	switch {
	case value == "":
		return kind.Errorf(kind.Invalid, "%s is empty", what)
	case len(value) > maxName:
		return kind.Errorf(kind.Invalid, "%s has %d bytes, more than %d", what, len(value), maxName)
	case strings.ContainsAny(value, "\x00\n"):
		return kind.Errorf(kind.Invalid, "%s contains a NUL or a newline: %.64q", what, value)
	}
	return nil
}

func checkMaps(what string, maps ...map[string]string) error {
	size := 0
	for _, m := range maps {
		if len(m) > maxLabels {
			return kind.Errorf(kind.Invalid, "%s has %d labels or annotations, more than %d", what, len(m), maxLabels)
		}
		for k, v := range m {
			size += len(k) + len(v)
		}
	}
	if size > maxMaps {
		return kind.Errorf(kind.Invalid, "%s has %d bytes of labels and annotations, more than %d", what, size, maxMaps)
	}
	return nil
}

func checkConfigSize(what string, m proto.Message) error {
	if size := proto.Size(m); size > maxConfig {
		return kind.Errorf(kind.Invalid, "%s has %d bytes, more than %d", what, size, maxConfig)
	}
	return nil
}

func checkImage(image *api.ImageSpec) error {
	if image.GetImage() == "" {
		return kind.Errorf(kind.Invalid, "image reference is missing")
	}
	for _, ref := range []string{image.Image, image.UserSpecifiedImage} {
		if len(ref) > maxImageRef {
			return kind.Errorf(kind.Invalid, "image reference has %d bytes, more than %d", len(ref), maxImageRef)
		}
	}
	return nil
}

func checkCommand(cmd []string) error {
	if len(cmd) == 0 {
		return kind.Errorf(kind.Invalid, "command is empty")
	}
	size := 0
	for _, arg := range cmd {
		if strings.ContainsRune(arg, 0) {
			return kind.Errorf(kind.Invalid, "command: argument contains a NUL: %.64q", arg)
		}
		size += len(arg) + 1
	}
	if size > maxCommand {
		return kind.Errorf(kind.Invalid, "command has %d bytes, more than %d", size, maxCommand)
	}
	return nil
}

// seconds converts without overflow: what does not fit is as long as can be.
// Negative times are none.
func seconds(n int64) time.Duration {
	if n < 0 {
		return 0
	}
	return time.Duration(min(n, math.MaxInt64/int64(time.Second))) * time.Second
}

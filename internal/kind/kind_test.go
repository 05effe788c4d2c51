package kind

import (
	"context"
	"errors"
	"fmt"
	"testing"
)

func TestOf(t *testing.T) {
	base := errors.New("x")
	for _, c := range []struct {
		err  error
		want Kind
	}{
		{base, Internal},
		{Wrap(NotFound, base), NotFound},
		{fmt.Errorf("step: %w", Wrap(Aborted, base)), Aborted},
		{Errorf(Invalid, "outer: %w", Wrap(NotFound, base)), Invalid},
		{fmt.Errorf("wait: %w", context.Canceled), Canceled},
		{fmt.Errorf("wait: %w", context.DeadlineExceeded), Deadline},
		{Wrap(Unavailable, context.Canceled), Unavailable},
	} {
		if got := Of(c.err); got != c.want {
			t.Errorf("Of(%v) = %v, want %v", c.err, got, c.want)
		}
	}
	if Wrap(Invalid, nil) != nil {
		t.Error("Wrap(nil) is not nil")
	}
	if !errors.Is(Wrap(Invalid, base), base) {
		t.Error("Wrap hides its cause from errors.Is")
	}
}

// Package steps runs an operation as a list of named steps. The names appear
// in errors, in logs of a stuck operation and in the crash sweep, which kills
// the process before and after each of them.
package steps

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Step is one idempotent part of an operation.
type Step struct {
	Name string
	Do   func(context.Context) error
}

// Run does the steps in order and stops at the first that fails, whose error
// it wraps with the step's name. op names the operation, as "run pod". at, if
// not nil, is told each step as it begins, for "stuck in" messages.
func Run(ctx context.Context, op string, at func(step string), list ...Step) error {
	for _, s := range list {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("%s: %w", s.Name, err)
		}
		if at != nil {
			at(s.Name)
		}
		crash(op, s.Name, "before")
		if err := s.Do(ctx); err != nil {
			return fmt.Errorf("%s: %w", s.Name, err)
		}
		crash(op, s.Name, "after")
	}
	return nil
}

// RunAll does every step even if some fail, and joins the errors. It is for
// destroying things, where giving up at the first failure would leak the rest.
func RunAll(ctx context.Context, op string, at func(step string), list ...Step) error {
	var errs []error
	for _, s := range list {
		if at != nil {
			at(s.Name)
		}
		crash(op, s.Name, "before")
		if err := s.Do(ctx); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", s.Name, err))
		}
		crash(op, s.Name, "after")
	}
	return errors.Join(errs...)
}

// CleanUp returns a context for undoing work whose own context may be dead
// already: it keeps ctx's values, drops its cancellation, and has a limit.
func CleanUp(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), limit)
}

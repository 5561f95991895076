package wire

import (
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/trivium-ml/trivium/core"
	pb "github.com/trivium-ml/trivium/plugins/proto/v1"
)

// EncodeError makes the status that a failed call ends with. It carries the
// whole of the error; the code is for readers that know only gRPC.
func EncodeError(err error) error {
	typed := core.AsError(err)
	detail := &pb.ErrorDetail{
		Kind: encodeErrorKind(typed.Kind), Message: valid(typed.Message), Hint: valid(typed.Hint), Strategy: valid(typed.Strategy),
	}
	full, detailErr := status.New(code(typed.Kind), valid(typed.Error())).WithDetails(detail)
	if detailErr != nil {
		return status.Error(codes.Internal, valid(typed.Error()))
	}
	return full.Err()
}

// DecodeError reads the error of a plugin. It reports false when the status
// does not come from a plugin but from the transport.
func DecodeError(err error) (*core.Error, bool) {
	for _, detail := range status.Convert(err).Details() {
		if d, ok := detail.(*pb.ErrorDetail); ok {
			return &core.Error{Kind: decodeErrorKind(d.GetKind()), Message: d.GetMessage(), Hint: d.GetHint(), Strategy: d.GetStrategy()}, true
		}
	}
	return nil, false
}

// code never is Unavailable, which says that the transport was lost.
func code(kind core.ErrorKind) codes.Code {
	switch kind {
	case core.ErrInvalidArgument:
		return codes.InvalidArgument
	case core.ErrUnknownStrategy:
		return codes.NotFound
	case core.ErrUnsupported:
		return codes.Unimplemented
	case core.ErrDeadlineExceeded:
		return codes.DeadlineExceeded
	case core.ErrCancelled:
		return codes.Canceled
	case core.ErrOutOfMemory:
		return codes.ResourceExhausted
	case core.ErrDeviceUnavailable:
		return codes.FailedPrecondition
	}
	return codes.Internal
}

// valid makes text fit to travel: messages quote bytes of users' files.
func valid(text string) string { return strings.ToValidUTF8(text, "\uFFFD") }

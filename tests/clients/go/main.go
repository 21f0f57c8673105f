// The Go SDK driven by lines of JSON: {"action", "fields"} on stdin, {"answer"} or {"error"} on stdout.
// Only the SDK's own error type becomes {"error"}; anything else ends the program.
package main

import (
	"encoding/json"
	"errors"
	"io"
	"log"
	"os"

	"github.com/tencentcloud/tencentcloud-sdk-go/tencentcloud/common"
	sdkerrors "github.com/tencentcloud/tencentcloud-sdk-go/tencentcloud/common/errors"
	"github.com/tencentcloud/tencentcloud-sdk-go/tencentcloud/common/profile"
	scf "github.com/tencentcloud/tencentcloud-sdk-go/tencentcloud/scf/v20180416"
)

type step struct {
	Action string          `json:"action"`
	Fields json.RawMessage `json:"fields"`
}

type refusal struct {
	Code      string `json:"code"`
	Message   string `json:"message"`
	RequestID string `json:"requestId"`
}

type outcome struct {
	Answer json.RawMessage `json:"answer,omitempty"`
	Error  *refusal        `json:"error,omitempty"`
}

// call makes a request from JSON, sends it, and gives the answer as JSON, {"Response": {...}}.
type call func(fields string) (string, error)

// typed makes a call of a request's constructor and of the client's method for it.
func typed[Q interface{ FromJsonString(string) error }, A interface{ ToJsonString() string }](
	request func() Q, send func(Q) (A, error),
) call {
	return func(fields string) (string, error) {
		asked := request()
		if err := asked.FromJsonString(fields); err != nil {
			return "", err
		}
		answer, err := send(asked)
		if err != nil {
			return "", err
		}
		return answer.ToJsonString(), nil
	}
}

func newClient() (*scf.Client, error) {
	how := profile.NewClientProfile()
	how.HttpProfile.Scheme = "HTTP"
	how.HttpProfile.Endpoint = os.Getenv("CLIENT_HOST")
	if method := os.Getenv("CLIENT_HTTP_METHOD"); method != "" {
		how.HttpProfile.ReqMethod = method
	}
	if method := os.Getenv("CLIENT_SIGN_METHOD"); method != "" {
		how.SignMethod = method
	}
	keys := common.NewCredential(os.Getenv("TENCENTCLOUD_SECRET_ID"), os.Getenv("TENCENTCLOUD_SECRET_KEY"))
	return scf.NewClient(keys, os.Getenv("TENCENTCLOUD_REGION"), how)
}

func callsOf(client *scf.Client) map[string]call {
	return map[string]call{
		"CreateAlias":        typed(scf.NewCreateAliasRequest, client.CreateAlias),
		"CreateFunction":     typed(scf.NewCreateFunctionRequest, client.CreateFunction),
		"CreateTrigger":      typed(scf.NewCreateTriggerRequest, client.CreateTrigger),
		"DeleteAlias":        typed(scf.NewDeleteAliasRequest, client.DeleteAlias),
		"DeleteFunction":     typed(scf.NewDeleteFunctionRequest, client.DeleteFunction),
		"DeleteTrigger":      typed(scf.NewDeleteTriggerRequest, client.DeleteTrigger),
		"GetAlias":           typed(scf.NewGetAliasRequest, client.GetAlias),
		"GetFunction":        typed(scf.NewGetFunctionRequest, client.GetFunction),
		"GetFunctionLogs":    typed(scf.NewGetFunctionLogsRequest, client.GetFunctionLogs),
		"Invoke":             typed(scf.NewInvokeRequest, client.Invoke),
		"ListAliases":        typed(scf.NewListAliasesRequest, client.ListAliases),
		"ListFunctions":      typed(scf.NewListFunctionsRequest, client.ListFunctions),
		"ListTriggers":       typed(scf.NewListTriggersRequest, client.ListTriggers),
		"PublishVersion":     typed(scf.NewPublishVersionRequest, client.PublishVersion),
		"UpdateFunctionCode": typed(scf.NewUpdateFunctionCodeRequest, client.UpdateFunctionCode),
	}
}

func run(calls map[string]call, asked step) (outcome, error) {
	send, known := calls[asked.Action]
	if !known {
		return outcome{}, errors.New("the driver has no " + asked.Action)
	}
	text, err := send(string(asked.Fields))
	var refused *sdkerrors.TencentCloudSDKError
	if errors.As(err, &refused) {
		return outcome{Error: &refusal{refused.Code, refused.Message, refused.RequestId}}, nil
	}
	if err != nil {
		return outcome{}, err
	}
	var answer struct{ Response json.RawMessage }
	err = json.Unmarshal([]byte(text), &answer)
	return outcome{Answer: answer.Response}, err
}

func main() {
	client, err := newClient()
	if err != nil {
		log.Fatal(err)
	}
	calls := callsOf(client)
	lines, answers := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var asked step
		if err := lines.Decode(&asked); err == io.EOF {
			return
		} else if err != nil {
			log.Fatal(err)
		}
		done, err := run(calls, asked)
		if err == nil {
			err = answers.Encode(done)
		}
		if err != nil {
			log.Fatalf("%s: %v", asked.Action, err)
		}
	}
}

// The Node SDK driven by lines of JSON: {"action", "fields"} on stdin, {"answer"} or {"error"} on stdout.
// Only the SDK's own exception becomes {"error"}; anything else ends the program.
"use strict";
const readline = require("node:readline");
const { scf } = require("tencentcloud-sdk-nodejs-scf");
const { default: SdkException } = require("tencentcloud-sdk-nodejs-common/tencentcloud/common/exception/tencent_cloud_sdk_exception");

const env = process.env;
const client = new scf.v20180416.Client({
  credential: { secretId: env.TENCENTCLOUD_SECRET_ID, secretKey: env.TENCENTCLOUD_SECRET_KEY },
  region: env.TENCENTCLOUD_REGION,
  profile: {
    ...(env.CLIENT_SIGN_METHOD && { signMethod: env.CLIENT_SIGN_METHOD }),
    httpProfile: {
      endpoint: env.CLIENT_HOST,
      protocol: "http://",
      ...(env.CLIENT_HTTP_METHOD && { reqMethod: env.CLIENT_HTTP_METHOD }),
    },
  },
});

async function answer({ action, fields }) {
  try {
    return { answer: await client[action](fields) };
  } catch (error) {
    if (!(error instanceof SdkException)) throw error;
    return { error: { code: error.code ?? "", message: error.message, requestId: error.requestId } };
  }
}

(async () => {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    process.stdout.write(JSON.stringify(await answer(JSON.parse(line))) + "\n");
  }
})();

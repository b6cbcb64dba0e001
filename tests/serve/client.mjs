// The official client of JavaScript against a server: what it says is compared by test_javascript.py.
import OpenAI from "openai";

const [baseURL, model, asked] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: process.env.CRAB_TEST_KEY, maxRetries: 0 });
const messages = [{ role: "user", content: asked }];
const told = {};

told.models = (await client.models.list()).data.map((one) => one.id);
const whole = await client.chat.completions.create({ model, messages, logprobs: true, top_logprobs: 1 });
told.whole = whole.choices[0].message.content;
told.usage = whole.usage;
told.fingerprint = whole.system_fingerprint;
told.likelihoods = whole.choices[0].logprobs.content.length;

const stream = await client.chat.completions.create({ model, messages, stream: true, stream_options: { include_usage: true } });
told.pieces = [];
for await (const chunk of stream) {
  if (chunk.choices.length) told.pieces.push(chunk.choices[0].delta.content ?? "");
  if (chunk.usage) told.streamed = chunk.usage;
}
const runner = client.chat.completions.stream({ model, messages });
told.final = (await runner.finalChatCompletion()).choices[0].message.content;

const stopped = await client.completions.create({ model, prompt: asked, max_tokens: 900, stream: true });
for await (const _ of stopped) { stopped.controller.abort(); break; }
told.left = true;

for (const [name, wrong] of Object.entries({ unknown: { temprature: 1 }, missing: { model: "none" } })) {
  try { await client.chat.completions.create({ model, messages, ...wrong }); }
  catch (error) { told[name] = { kind: error.constructor.name, status: error.status, code: error.code, param: error.param }; }
}
try { await new OpenAI({ baseURL, apiKey: "wrong", maxRetries: 0 }).models.list(); }
catch (error) { told.key = error.constructor.name; }
console.log(JSON.stringify(told));

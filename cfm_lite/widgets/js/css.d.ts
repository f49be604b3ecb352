declare module "*.css" {
  const text: string;
  export default text;
}
/** Put in by the build: the site's public address, or "". */
declare const SITE: string;
/** Put in by the build: the code of the worker. */
declare const WORKER: string;
